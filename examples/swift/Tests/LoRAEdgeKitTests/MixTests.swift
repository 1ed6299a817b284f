import XCTest

@testable import LoRAEdgeKit

final class MixTests: XCTestCase {
    func testLanesLieAsThePythonSideHasThem() throws {
        let (vectors, folder, manifest) = try Vectors.load()
        let expected = try SafeTensors(contentsOf: folder.appendingPathComponent("expected.safetensors"))
        for told in vectors.cases {
            let packs = try told.packs.map { try Pack(contentsOf: Vectors.pack($0, in: folder), for: manifest) }
            let mix = try Mix(packs, in: told.component, of: manifest)
            let made = mix.tensors + [try mix.scale(multipliers: told.multipliers)]
            let wanted = expected.entries.filter { $0.key.hasPrefix(told.name + "/") }
            XCTAssertEqual(Set(made.map { "\(told.name)/\($0.name)" }), Set(wanted.keys), told.name)
            for tensor in made {
                let name = "\(told.name)/\(tensor.name)"
                XCTAssertEqual(tensor.shape, wanted[name]?.shape, name)
                switch tensor.numbers {
                case let .half(bits):
                    XCTAssertEqual(wanted[name]?.dtype, "F16")
                    XCTAssertEqual(bits.map(Half.float), expected.floats(name), name)
                case let .single(floats):
                    XCTAssertEqual(wanted[name]?.dtype, "F32")
                    XCTAssertEqual(floats, expected.floats(name), name)
                }
            }
        }
    }

    func testAnAdapterTakesTheSameLanesInEverySlot() throws {
        let (_, folder, manifest) = try Vectors.load()
        let packs = try ["ink", "glow"].map { try Pack(contentsOf: Vectors.pack($0, in: folder), for: manifest) }
        XCTAssertEqual(packs.map(\.name), ["ink", "glow"])
        XCTAssertEqual(packs.map { $0.metadata["ss_output_name"] }, ["ink", "glow"])
        XCTAssertEqual(try Mix(packs, in: "unet", of: manifest).lanes, [0..<3, 3..<6])
        XCTAssertEqual(packs.map { $0.width(in: "text_encoder") }, [4, 0])
    }

    func testAMultiplierThatIsNoNumberIsRefused() throws {
        let (_, folder, manifest) = try Vectors.load()
        let ink = try Pack(contentsOf: Vectors.pack("ink", in: folder), for: manifest)
        let mix = try Mix([ink], in: "unet", of: manifest)
        for multiplier in [Float.nan, .infinity] {
            XCTAssertThrowsError(try mix.scale(multipliers: [multiplier]))
        }
    }
}
