/// Adapters side by side in the lanes of one component.
///
///     y = base(x) + ((x @ down) * lora_scale) @ up
///
/// An adapter takes the same lanes in every slot, as many as its largest rank; what is over is zero. alpha / rank is
/// folded into `up`, and the multiplier stands in `lora_scale` alone: a slider moves R numbers and no weight.
public struct Mix {
    /// An input's numbers, row-major, in the input's own type.
    public struct Tensor: Equatable {
        public enum Numbers: Equatable {
            case half([UInt16])
            case single([Float])
        }

        public let name: String
        public let shape: [Int]
        public let numbers: Numbers
    }

    public let component: String
    /// Lanes of each adapter, in order.
    public let lanes: [Range<Int>]
    /// down and up of every slot that an adapter changes; the rest keep their default, zero.
    public let tensors: [Tensor]

    private let scale: Manifest.Port

    /// Lay adapters out, one after another.
    ///
    /// - Throws: `Refusal.tooManyLanes` with all the numbers, `Refusal.numbers`, `Refusal.noComponent`.
    public init(_ packs: [Pack], in component: String, of manifest: Manifest) throws {
        let opened = try manifest.component(component)
        guard let name = opened.scale, let scale = opened.input(name), scale.shape == [manifest.rank] else {
            throw Refusal.damaged(file: Manifest.fileName, why: "\(component) has no input with a number per lane")
        }
        let widths = packs.map { $0.width(in: component) }
        var lanes: [Range<Int>] = []
        for width in widths {
            let start = lanes.last?.upperBound ?? 0
            guard width <= manifest.rank - start else {
                throw Refusal.tooManyLanes(component: component, widths: widths, rank: manifest.rank)
            }
            lanes.append(start..<start + width)
        }

        let changed = Set(packs.flatMap { ($0.components[component] ?? [:]).keys }).sorted()
        tensors = try changed.flatMap { slotName -> [Tensor] in
            guard let slot = opened.slots?[slotName] else { return [] }  // packs were checked for this
            let into = try Layout(slot.downShape, lanes: manifest.rank, laneAxis: .down, input: slot.down)
            let outOf = try Layout(slot.upShape, lanes: manifest.rank, laneAxis: .up, input: slot.up)
            var down = [Float](repeating: 0, count: into.count)
            var up = [Float](repeating: 0, count: outOf.count)
            for (pack, own) in zip(packs, lanes) {
                guard let held = pack.components[component]?[slotName] else { continue }
                let (inner, outer) = (try pack.read(held.down), try pack.read(held.up))
                let filled = own.lowerBound..<own.lowerBound + held.rank
                into.fill(&down, lanes: filled) { lane, feature in inner[feature * held.rank + lane] }
                outOf.fill(&up, lanes: filled) { lane, feature in
                    outer[lane * outOf.features + feature] * held.scales[lane]
                }
            }
            return [
                try Tensor(down, for: slot.down, shape: into.shape, of: opened, named: component),
                try Tensor(up, for: slot.up, shape: outOf.shape, of: opened, named: component),
            ]
        }
        self.component = component
        self.lanes = lanes
        self.scale = scale
    }

    /// `lora_scale` for one multiplier per adapter; lanes without an adapter have 0.
    ///
    /// - Throws: `Refusal.multipliers`.
    public func scale(multipliers: [Float]) throws -> Tensor {
        let largest = scale.dtype == "fp16" ? Half.greatest : Float.greatestFiniteMagnitude
        guard multipliers.count == lanes.count, multipliers.allSatisfy({ $0.magnitude <= largest }) else {
            throw Refusal.multipliers(given: multipliers, adapters: lanes.count)
        }
        var numbers = [Float](repeating: 0, count: scale.shape[0])
        for (own, multiplier) in zip(lanes, multipliers) {
            for lane in own { numbers[lane] = multiplier }
        }
        return Tensor(numbers, as: scale)
    }
}

extension Mix.Tensor {
    /// - Throws: `Refusal.numbers` for what the input's type holds only as infinity, `Refusal.damaged` for an input
    ///   that the packages have not, or have in another shape.
    init(
        _ numbers: [Float], for input: String, shape: [Int], of component: Manifest.Component, named place: String
    ) throws {
        guard let port = component.input(input), port.shape == shape else {
            let wanted = "\(input.prefix(100)) \(shape)"
            throw Refusal.damaged(file: Manifest.fileName, why: "no package has the input \(wanted)")
        }
        self.init(numbers, as: port)
        guard isFinite else { throw Refusal.numbers(place: place, name: input) }
    }

    init(_ numbers: [Float], as port: Manifest.Port) {
        let held: Numbers = port.dtype == "fp16" ? .half(numbers.map(Half.bits)) : .single(numbers)
        self.init(name: port.name, shape: port.shape, numbers: held)
    }

    private var isFinite: Bool {
        switch numbers {
        case let .half(bits): return bits.allSatisfy { $0 & 0x7C00 != 0x7C00 }
        case let .single(floats): return floats.allSatisfy(\.isFinite)
        }
    }
}

extension Pack {
    /// A factor's numbers, all of them finite.
    fileprivate func read(_ tensor: String) throws -> [Float] {
        guard let numbers = file.floats(tensor), numbers.allSatisfy(\.isFinite) else {
            throw Refusal.numbers(place: file.name, name: tensor)
        }
        return numbers
    }
}
