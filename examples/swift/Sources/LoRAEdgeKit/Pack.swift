import Foundation

/// An adapter that `lora-edge pack` wrote for one bundle (docs/packs.md), mapped and checked against its manifest.
public struct Pack {
    /// What a pack says of itself, under `lora_edge_pack`.
    struct Head: Decodable {
        struct Bundle: Decodable { let fingerprint: String }
        struct Part: Decodable {
            let prefix: String
            let slots: [Lanes]
        }
        /// A slot's lanes; `scales` are runs of [lanes, alpha / rank] in lane order.
        struct Lanes: Decodable {
            let name: String
            let rank: Int
            let scales: [[Double]]
        }
        let format: Int
        let abi: Int
        let bundle: Bundle
        let components: [String: Part]
    }

    /// One slot of an adapter.
    public struct Lanes {
        public let rank: Int
        /// alpha / rank of each lane.
        public let scales: [Float]
        /// Names of the tensors: down [in, rank], of a convolution [in * kh * kw, rank]; up [rank, out].
        let down: String
        let up: String
    }

    /// The name that a prompt calls it by: the file's, without its endings.
    public let name: String
    /// The original file's strings: trigger words, training settings.
    public let metadata: [String: String]
    /// Component -> slot -> lanes, of the components that are fed.
    public let components: [String: [String: Lanes]]

    let file: SafeTensors

    static let key = "lora_edge_pack"
    /// Lanes of a slot that are read at most, so that a number in a header takes no memory.
    static let largestRank = 1 << 16

    /// Open a pack and check all of it; tensors are read when they are laid out.
    ///
    /// - Parameters:
    ///   - feeding: components whose inputs the app feeds; all that take adapters where nothing is said. With Apple's
    ///     own text encoder, which takes none, say `["unet"]`.
    ///   - strict: refuse a pack that changes other components too; otherwise leave those out.
    /// - Throws: `Refusal`, before any tensor is read.
    public init(contentsOf url: URL, for manifest: Manifest, feeding: [String]? = nil, strict: Bool = true) throws {
        let file = try SafeTensors(contentsOf: url)
        guard let text = file.metadata[Self.key],
            let head = decoded(Head.self, from: Data(text.utf8))
        else { throw Refusal.damaged(file: file.name, why: "it does not describe itself as a pack") }
        guard head.format == 1 else { throw Refusal.version(file: file.name, word: "format", found: head.format) }
        guard head.abi == 1 else { throw Refusal.version(file: file.name, word: "abi", found: head.abi) }
        guard head.bundle.fingerprint == manifest.fingerprint else {
            throw Refusal.otherBundle(
                pack: file.name, packedFor: head.bundle.fingerprint, fingerprint: manifest.fingerprint)
        }
        let fed = feeding ?? manifest.adaptable
        let left = head.components.keys.filter { !fed.contains($0) }.sorted()
        guard left.isEmpty || (!strict && left.count < head.components.count) else {
            throw Refusal.unfedComponents(pack: file.name, names: left)
        }

        var parts: [String: [String: Lanes]] = [:]
        var used: Set<String> = []
        for (component, part) in head.components {
            var lanes: [String: Lanes] = [:]
            for told in part.slots {
                let slot = try Lanes(told, prefix: part.prefix, pack: file.name)
                guard lanes.updateValue(slot, forKey: told.name) == nil else {
                    throw Refusal.damaged(file: file.name, why: "it lists a slot twice")
                }
                used.formUnion([slot.down, slot.up])
            }
            if fed.contains(component) {
                try Self.check(lanes, of: component, in: manifest, against: file)
                parts[component] = lanes
            }
        }
        let others = file.entries.keys.filter { !used.contains($0) }.sorted()
        guard others.isEmpty else { throw Refusal.notLanes(pack: file.name, tensors: others) }

        self.file = file
        name = [".safetensors", ".pack"].reduce(file.name) { $0.hasSuffix($1) ? String($0.dropLast($1.count)) : $0 }
        metadata = file.metadata.filter { $0.key != Self.key }
        components = parts
    }

    /// Lanes that the adapter takes in every slot of a component: as many as its largest rank.
    public func width(in component: String) -> Int {
        components[component]?.values.map(\.rank).max() ?? 0
    }

    /// Every slot has inputs in the packages, and both its tensors, of its shapes.
    private static func check(
        _ lanes: [String: Lanes], of component: String, in manifest: Manifest, against file: SafeTensors
    ) throws {
        let slots = try manifest.component(component).slots ?? [:]
        let missing = lanes.keys.filter { slots[$0] == nil }.sorted()
        guard missing.isEmpty else {
            throw Refusal.missingSlots(pack: file.name, component: component, slots: missing)
        }
        for (name, held) in lanes {
            guard let slot = slots[name] else { continue }
            let down = try Layout(slot.downShape, lanes: manifest.rank, laneAxis: .down, input: slot.down)
            let up = try Layout(slot.upShape, lanes: manifest.rank, laneAxis: .up, input: slot.up)
            for (tensor, wanted) in [(held.down, [down.features, held.rank]), (held.up, [held.rank, up.features])] {
                guard let entry = file.entries[tensor] else {
                    throw Refusal.tensor(pack: file.name, name: tensor, why: "is missing")
                }
                guard entry.shape == wanted, ["F16", "F32"].contains(entry.dtype) else {
                    throw Refusal.tensor(
                        pack: file.name, name: tensor,
                        why: "is \(entry.dtype) \(entry.shape) where F16 or F32 \(wanted) is needed")
                }
            }
        }
    }
}

extension Pack.Lanes {
    init(_ told: Pack.Head.Lanes, prefix: String, pack: String) throws {
        let contradiction = Refusal.damaged(
            file: pack, why: "its scales of \(told.name.prefix(100)) are not of its rank")
        var scales: [Float] = []
        guard (1...Pack.largestRank).contains(told.rank) else {
            throw Refusal.damaged(file: pack, why: "\(told.name.prefix(100)) has \(told.rank) lanes")
        }
        for run in told.scales {
            guard run.count == 2, let lanes = Int(exactly: run[0]), lanes > 0, lanes <= told.rank - scales.count,
                Float(run[1]).isFinite
            else { throw contradiction }
            scales += Array(repeating: Float(run[1]), count: lanes)
        }
        guard scales.count == told.rank else {
            throw contradiction
        }
        self.init(
            rank: told.rank, scales: scales,
            down: "\(prefix)lora.\(told.name).down", up: "\(prefix)lora.\(told.name).up")
    }
}
