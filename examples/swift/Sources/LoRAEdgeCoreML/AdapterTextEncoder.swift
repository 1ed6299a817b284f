#if canImport(CoreML)
import CoreML
import Foundation
import LoRAEdgeKit

/// `TextEncoderWithAdapters`: tokens to hidden states, with adapters.
///
/// Apple's own `TextEncoder` class feeds a model's only input, so adapters need a class of their own.
public struct AdapterTextEncoder {
    private let model: MLModel
    private let ids: Manifest.Port

    public init(model: MLModel, manifest: Manifest) throws {
        let component = try manifest.component("text_encoder")
        guard let ids = component.input("input_ids"),
            model.modelDescription.inputDescriptionsByName[ids.name] != nil
        else { throw Refusal.modelInput(name: "input_ids", why: "is not there") }
        self.model = model
        self.ids = ids
    }

    /// Tokens of one prompt, as many as the model reads, start and padding included.
    public var length: Int { ids.shape.last ?? 0 }

    /// - Parameters:
    ///   - tokens: `length` of them.
    ///   - adapters: of `AdapterFeatures` for `text_encoder`; none is the base.
    /// - Returns: the hidden states, [1, length, width].
    public func encode(_ tokens: [Int], adapters: [String: MLFeatureValue] = [:]) throws -> MLMultiArray {
        guard tokens.count == length else {
            throw Refusal.modelInput(name: ids.name, why: "takes \(length) tokens, and \(tokens.count) were given")
        }
        let array = try MLMultiArray(shape: ids.shape.map { NSNumber(value: $0) }, dataType: ids.dataType)
        for (index, token) in tokens.enumerated() {
            array[index] = NSNumber(value: token)
        }
        let given = adapters.merging([ids.name: MLFeatureValue(multiArray: array)]) { _, own in own }
        let made = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: given))
        guard let states = made.featureValue(for: "last_hidden_state")?.multiArrayValue else {
            throw Refusal.modelInput(name: "last_hidden_state", why: "is not among its outputs")
        }
        return states
    }
}
#endif
