import XCTest

@testable import LoRAEdgeKit

final class RefusalTests: XCTestCase {
    func testEachBadFileAndMixIsRefusedWithItsSentence() throws {
        let (vectors, folder, manifest) = try Vectors.load()
        XCTAssertGreaterThan(vectors.refusals.count, 25)
        for told in vectors.refusals {
            let place = told.packs.joined(separator: " and ")
            XCTAssertThrowsError(try lay(told, folder, manifest), place) { error in
                guard let refusal = error as? Refusal else { return XCTFail("\(place): \(error)") }
                XCTAssertEqual(refusal.kind, told.refusal, "\(place): \(refusal)")
                for word in told.says {
                    XCTAssertTrue(refusal.description.contains(word), "\(place): \(refusal) lacks \(word)")
                }
            }
        }
    }

    func testPartsThatAreNotFedAreLeftOutOnRequest() throws {
        let (_, folder, manifest) = try Vectors.load()
        let url = Vectors.pack("ink", in: folder)
        let ink = try Pack(contentsOf: url, for: manifest, feeding: ["unet"], strict: false)
        XCTAssertEqual(Array(ink.components.keys), ["unet"])
        XCTAssertThrowsError(try Pack(contentsOf: url, for: manifest, feeding: ["vae_decoder"], strict: false))
    }

    func testAFolderWithoutAManifestIsRefused() throws {
        let (_, folder, _) = try Vectors.load()
        XCTAssertThrowsError(try Manifest(folder: folder))
        XCTAssertThrowsError(try Pack(contentsOf: folder.appendingPathComponent("none"), for: Vectors.load().manifest))
    }

    /// A trap would end the whole run.
    func testDamagedFilesAreRefusedOrReadAndNeverTrap() throws {
        let (_, folder, manifest) = try Vectors.load()
        let whole = try Data(contentsOf: Vectors.pack("ink", in: folder))
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID().uuidString).pack.safetensors")
        defer { try? FileManager.default.removeItem(at: url) }
        var random = Random()
        var refused = 0
        for _ in 0..<500 {
            var data = whole
            for _ in 0...Int.random(in: 0..<4, using: &random) {
                data[Int.random(in: 0..<data.count, using: &random)] = UInt8.random(in: 32..<127, using: &random)
            }
            try data.prefix(Int.random(in: 0..<10, using: &random) == 0 ? data.count / 2 : data.count).write(to: url)
            do {
                let pack = try Pack(contentsOf: url, for: manifest)
                _ = try Mix([pack], in: "unet", of: manifest).scale(multipliers: [1])
            } catch {
                XCTAssertTrue(error is Refusal, "\(error)")
                refused += 1
            }
        }
        XCTAssertGreaterThan(refused, 100)
    }

    private func lay(_ told: Vectors.RefusalCase, _ folder: URL, _ manifest: Manifest) throws {
        let packs = try told.packs.map {
            try Pack(contentsOf: Vectors.pack($0, in: folder), for: manifest, feeding: told.feeding)
        }
        let mix = try Mix(packs, in: told.component ?? "unet", of: manifest)
        _ = try mix.scale(multipliers: told.multipliers ?? packs.map { _ in 1 })
    }
}

/// The same numbers every time: a linear congruential generator (Knuth, MMIX).
private struct Random: RandomNumberGenerator {
    var state: UInt64 = 1

    mutating func next() -> UInt64 {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return state >> 16 | state << 48
    }
}
