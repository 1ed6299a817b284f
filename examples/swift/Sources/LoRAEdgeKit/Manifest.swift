import Foundation

/// `coreml/lora_edge_coreml.json` of a bundle, as much of it as an app needs.
public struct Manifest: Decodable {
    public static let fileName = "lora_edge_coreml.json"

    /// An input or output of a package.
    public struct Port: Decodable, Equatable {
        public let name: String
        public let shape: [Int]
        /// "fp16", "fp32" or "int32".
        public let dtype: String
        public let optional: Bool?
    }

    public struct Ports: Decodable {
        public let inputs: [Port]
        public let outputs: [Port]
    }

    /// The two inputs of a slot, R lanes each: down [in, R] or [R, in, kh, kw], up [R, out] or [out, R, 1, 1].
    public struct Slot: Decodable {
        public let down: String
        public let up: String
        public let downShape: [Int]
        public let upShape: [Int]

        private enum CodingKeys: String, CodingKey {
            case down, up
            case downShape = "down_shape"
            case upShape = "up_shape"
        }
    }

    /// One model of the pipeline, in one package or several that run one after the other.
    public struct Component: Decodable {
        public let packages: [String]
        public let ports: [String: Ports]
        public let slots: [String: Slot]?
        /// The input with one multiplier per lane [R].
        public let scale: String?

        /// An input of any of its packages.
        public func input(_ name: String) -> Port? {
            packages.lazy.compactMap { ports[$0]?.inputs.first { $0.name == name } }.first
        }
    }

    public let format: Int
    public let abi: Int
    /// The bundle's; packs carry the same.
    public let fingerprint: String
    /// R, lanes of every slot: the most that all adapters of a mix may take together.
    public let rank: Int
    public let precision: String
    /// Rows of the UNet: 2 with guidance.
    public let rows: Int
    /// Height and width of the latents.
    public let latent: [Int]
    public let components: [String: Component]

    /// Components that take adapters, by name.
    public var adaptable: [String] {
        components.filter { $0.value.slots?.isEmpty == false }.keys.sorted()
    }

    /// Read the manifest of a `coreml` folder.
    ///
    /// - Throws: `Refusal.damaged` or `Refusal.version`.
    public init(folder: URL) throws {
        let file = Self.fileName
        guard let data = try? Data(contentsOf: folder.appendingPathComponent(file)) else {
            throw Refusal.damaged(file: file, why: "there is none in \(folder.lastPathComponent)")
        }
        guard let told = decoded(Self.self, from: data) else {
            throw Refusal.damaged(file: file, why: "it lacks or misspells an entry")
        }
        self = told
        guard format == 1 else { throw Refusal.version(file: file, word: "format", found: format) }
        guard abi == 1 else { throw Refusal.version(file: file, word: "abi", found: abi) }
        guard rank > 0 else { throw Refusal.damaged(file: file, why: "rank \(rank)") }
    }

    /// A component that takes adapters.
    ///
    /// - Throws: `Refusal.noComponent`.
    public func component(_ name: String) throws -> Component {
        guard let found = components[name], found.slots?.isEmpty == false, found.scale != nil else {
            throw Refusal.noComponent(name, known: adaptable)
        }
        return found
    }
}
