import XCTest

@testable import LoRAEdgeKit

final class HalfTests: XCTestCase {
    func testRoundsAsNumpyDoes() throws {
        for pair in try Vectors.load().vectors.halves {
            XCTAssertEqual(UInt32(Half.bits(Float(bitPattern: pair[0]))), pair[1], "\(Float(bitPattern: pair[0]))")
        }
    }

    func testEveryHalfComesBack() {
        for bits in UInt16.min...UInt16.max {
            let value = Half.float(bits)
            if value.isNaN {
                XCTAssertEqual(Half.bits(value) & 0x7FFF, 0x7E00)
            } else {
                XCTAssertEqual(Half.bits(value), bits)
            }
        }
    }
}
