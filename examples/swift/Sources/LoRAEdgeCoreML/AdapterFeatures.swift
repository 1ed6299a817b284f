#if canImport(CoreML)
import CoreML
import Foundation
import LoRAEdgeKit

/// A mix as the features that a model is given: made once, fed at every step.
///
/// Another multiplier makes one small array anew, `lora_scale`; the rest stays as it is.
public struct AdapterFeatures {
    public let mix: Mix
    private let resting: [String: MLFeatureValue]

    /// - Parameters:
    ///   - mix: of `manifest`'s bundle.
    ///   - models: what the component's package says of itself, of all of them where it was cut into chunks.
    ///   - manifest: of the folder that the models were compiled from.
    ///   - explicitZeros: give inputs that no adapter changes as arrays of zeros too, for a system on which the
    ///     packages' defaults do not work.
    /// - Throws: `Refusal.modelInput` where a model takes something else than the manifest says.
    public init(_ mix: Mix, models: [MLModelDescription], manifest: Manifest, explicitZeros: Bool = false) throws {
        let component = try manifest.component(mix.component)
        let slots = component.slots ?? [:]
        var resting: [String: MLFeatureValue] = [:]
        for input in slots.values.flatMap({ [$0.down, $0.up] }) + [component.scale].compactMap({ $0 }) {
            guard let port = component.input(input) else { continue }
            try port.check(against: models)
            if explicitZeros && input != component.scale {
                resting[input] = try MLFeatureValue(multiArray: .zeros(port))
            }
        }
        for tensor in mix.tensors {
            resting[tensor.name] = try MLFeatureValue(multiArray: .holding(tensor))
        }
        self.mix = mix
        self.resting = resting
    }

    /// Every feature of the mix, by name, for one multiplier per adapter.
    ///
    /// - Throws: `Refusal.multipliers`.
    public func values(multipliers: [Float]) throws -> [String: MLFeatureValue] {
        let scale = try mix.scale(multipliers: multipliers)
        return resting.merging([scale.name: try MLFeatureValue(multiArray: .holding(scale))]) { _, new in new }
    }
}
#endif
