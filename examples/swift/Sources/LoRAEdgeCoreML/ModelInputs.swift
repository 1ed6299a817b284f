#if canImport(CoreML)
import CoreML
import Foundation
import LoRAEdgeKit

extension Manifest.Port {
    var dataType: MLMultiArrayDataType {
        switch dtype {
        case "fp16": return .float16
        case "int32": return .int32
        default: return .float32
        }
    }

    /// The input as a model declares it: any of a component's packages may take it, and it must be optional.
    func check(against models: [MLModelDescription]) throws {
        let declared = models.compactMap { $0.inputDescriptionsByName[name] }
        guard !declared.isEmpty else { throw Refusal.modelInput(name: name, why: "is not there") }
        for input in declared {
            guard let constraint = input.multiArrayConstraint, constraint.shape.map(\.intValue) == shape else {
                throw Refusal.modelInput(name: name, why: "has another shape than \(shape)")
            }
            guard constraint.dataType == dataType else {
                throw Refusal.modelInput(name: name, why: "is of another type than \(dtype)")
            }
            guard input.isOptional else { throw Refusal.modelInput(name: name, why: "must be given at every run") }
        }
    }
}

extension MLMultiArray {
    /// An array of an input's shape and type, filled with zeros.
    static func zeros(_ port: Manifest.Port) throws -> MLMultiArray {
        let array = try MLMultiArray(shape: port.shape.map { NSNumber(value: $0) }, dataType: port.dataType)
        array.withUnsafeMutableBytes { bytes, _ in _ = bytes.initializeMemory(as: UInt8.self, repeating: 0) }
        return array
    }

    /// The same numbers, wherever Core ML lays their rows.
    static func holding(_ tensor: Mix.Tensor) throws -> MLMultiArray {
        switch tensor.numbers {
        case let .half(bits): return try filled(tensor.shape, .float16, bits)
        case let .single(floats): return try filled(tensor.shape, .float32, floats)
        }
    }

    private static func filled<Number>(
        _ shape: [Int], _ type: MLMultiArrayDataType, _ numbers: [Number]
    ) throws -> MLMultiArray {
        let array = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: type)
        let width = shape.last ?? 1
        array.withUnsafeMutableBytes { bytes, strides in
            let elements = bytes.bindMemory(to: Number.self)
            for row in 0..<numbers.count / width {
                var (rest, start) = (row, 0)
                for (size, stride) in zip(shape, strides).dropLast().reversed() {
                    start += rest % size * stride
                    rest /= size
                }
                for column in 0..<width {
                    elements[start + column * (strides.last ?? 1)] = numbers[row * width + column]
                }
            }
        }
        return array
    }
}
#endif
