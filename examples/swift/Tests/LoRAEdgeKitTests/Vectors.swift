import Foundation
import XCTest

@testable import LoRAEdgeKit

/// What tests/examples/swift_vectors.py wrote, with numpy and without any of lora-edge's own code.
struct Vectors: Decodable {
    struct Case: Decodable {
        let name: String
        let packs: [String]
        let component: String
        let multipliers: [Float]
    }

    struct RefusalCase: Decodable {
        let packs: [String]
        let component: String?
        let feeding: [String]?
        let multipliers: [Float]?
        let refusal: String
        let says: [String]
    }

    let cases: [Case]
    let refusals: [RefusalCase]
    /// Pairs of a float's bits and the nearest half's.
    let halves: [[UInt32]]

    static func load() throws -> (vectors: Vectors, folder: URL, manifest: Manifest) {
        let folder = try XCTUnwrap(Bundle.module.resourceURL).appendingPathComponent("Vectors")
        let text = try Data(contentsOf: folder.appendingPathComponent("cases.json"))
        let manifest = try Manifest(folder: folder.appendingPathComponent("coreml"))
        return (try JSONDecoder().decode(Vectors.self, from: text), folder, manifest)
    }

    static func pack(_ name: String, in folder: URL) -> URL {
        folder.appendingPathComponent(name + ".pack.safetensors")
    }
}

extension Refusal {
    /// The name of the case.
    var kind: String {
        Mirror(reflecting: self).children.first?.label ?? ""
    }
}
