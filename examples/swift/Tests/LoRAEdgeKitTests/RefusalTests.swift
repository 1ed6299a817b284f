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

    private func lay(_ told: Vectors.RefusalCase, _ folder: URL, _ manifest: Manifest) throws {
        let packs = try told.packs.map {
            try Pack(contentsOf: Vectors.pack($0, in: folder), for: manifest, feeding: told.feeding)
        }
        let mix = try Mix(packs, in: told.component ?? "unet", of: manifest)
        _ = try mix.scale(multipliers: told.multipliers ?? packs.map { _ in 1 })
    }
}
