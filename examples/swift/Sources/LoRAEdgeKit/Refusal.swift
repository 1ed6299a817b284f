import Foundation

/// Every way in which a manifest, a pack or a mix is refused: what is wrong, where, and what to do about it.
public enum Refusal: Error, Equatable {
    /// Not a readable file: truncated, overlapping, foreign, or contradicting itself.
    case damaged(file: String, why: String)
    /// Written for another version of the format or of the graph contract.
    case version(file: String, word: String, found: Int)
    /// A pack for another bundle.
    case otherBundle(pack: String, packedFor: String, fingerprint: String)
    /// The bundle has no component of that name that takes adapters.
    case noComponent(String, known: [String])
    /// The pack changes components that the app does not feed.
    case unfedComponents(pack: String, names: [String])
    /// Gains, biases, norms and words, which Core ML packages have no inputs for.
    case notLanes(pack: String, tensors: [String])
    /// Slots that the packages have no inputs for.
    case missingSlots(pack: String, component: String, slots: [String])
    /// A tensor that is missing, or of another shape or type.
    case tensor(pack: String, name: String, why: String)
    /// NaN or infinity among the numbers, or numbers beyond those of the package's type.
    case numbers(place: String, name: String)
    /// More lanes than the packages have.
    case tooManyLanes(component: String, widths: [Int], rank: Int)
    /// As many multipliers as adapters are needed, each a number that the package's type holds.
    case multipliers(given: [Float], adapters: Int)
    /// A model's input is not what the manifest says.
    case modelInput(name: String, why: String)
}

extension Refusal: LocalizedError, CustomStringConvertible {
    public var errorDescription: String? { description }

    public var description: String {
        switch self {
        case let .damaged(file, why):
            return "\(file) cannot be read: \(why); copy it again from where it was made"
        case let .version(file, word, found):
            return "\(file) has \(word) \(found), and this version reads 1; make it again with this version's lora-edge"
        case let .otherBundle(pack, packedFor, fingerprint):
            return "\(pack) was packed for another bundle, \(short(packedFor)), "
                + "where this one is \(short(fingerprint)); pack the original again with `lora-edge pack`"
        case let .noComponent(name, known):
            return "there is no \(name) that takes adapters; there are \(listed(known))"
        case let .unfedComponents(pack, names):
            return "\(pack) changes \(listed(names)) too, which is not fed here; feed it, or pass strict: false"
        case let .notLanes(pack, tensors):
            return "\(pack) has \(listed(tensors)), which Core ML packages have no inputs for; "
                + "make a LoRA of the original with `lora-edge resize --bundle`"
        case let .missingSlots(pack, component, slots):
            return "\(pack) changes \(listed(slots)), which have no inputs in the \(component)'s packages; "
                + "for 3x3 convolutions export with --conv-slots"
        case let .tensor(pack, name, why):
            return "\(pack): \(name) \(why); pack the original again with `lora-edge pack`"
        case let .numbers(place, name):
            return "\(place): \(name) has numbers that the package's type cannot hold; export with --precision fp32"
        case let .tooManyLanes(component, widths, rank):
            let together = widths.reduce(0, +)
            let each = widths.map(String.init).joined(separator: " + ")
            return "\(component): \(each) lanes, \(together) together, where the packages have \(rank); "
                + "export with a larger --rank, use fewer adapters, or cut them with `lora-edge resize --rank`"
        case let .multipliers(given, adapters):
            return "multipliers \(given) for \(adapters) adapters; give one finite number for each"
        case let .modelInput(name, why):
            return "the model's input \(name) \(why); compile the package that lies beside the manifest"
        }
    }
}

/// At most three names; a stranger's file may hold a million.
private func listed(_ names: [String]) -> String {
    let more = names.count > 3 ? " and \(names.count - 3) more" : ""
    return names.prefix(3).map { String($0.prefix(100)) }.joined(separator: ", ") + more
}

private func short(_ fingerprint: String) -> String {
    String(fingerprint.prefix(12))
}
