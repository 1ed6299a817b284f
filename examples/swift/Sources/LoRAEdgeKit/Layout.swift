/// Where lane and feature of a factor lie in an input of R lanes.
///
/// | input | shape | a lane's neighbour | a feature's neighbour |
/// |---|---|---|---|
/// | down of a linear layer | [in, R] | 1 | R |
/// | down of a convolution | [R, in, kh, kw] | in * kh * kw | 1 |
/// | up of a linear layer | [R, out] | out | 1 |
/// | up of a convolution | [out, R, 1, 1] | 1 | R |
struct Layout: Equatable {
    enum Factor {
        case down, up
    }

    let shape: [Int]
    let count: Int
    /// Input features of down (of a convolution in * kh * kw), output features of up.
    let features: Int
    let laneStride: Int
    let featureStride: Int

    /// - Throws: `Refusal.damaged` where the manifest's shape is none of the above.
    init(_ shape: [Int], lanes: Int, laneAxis factor: Factor, input: String) throws {
        let lanesFirst = (factor == .up) == (shape.count == 2)
        let others = lanesFirst ? shape.dropFirst() : shape.prefix(1) + shape.dropFirst(2)
        guard shape.count == 2 || shape.count == 4, shape[lanesFirst ? 0 : 1] == lanes,
            let features = product(others), let count = product([features, lanes]),
            lanesFirst || others.dropFirst().allSatisfy({ $0 == 1 })
        else { throw Refusal.damaged(file: Manifest.fileName, why: "\(input.prefix(100)) has the shape \(shape)") }
        self.shape = shape
        self.count = count
        self.features = features
        laneStride = lanesFirst ? features : 1
        featureStride = lanesFirst ? 1 : lanes
    }

    /// Write the lanes of one adapter into the input's numbers.
    ///
    /// - Parameters:
    ///   - lanes: where they lie in the bucket.
    ///   - number: of a lane, counted from the adapter's own first, and a feature.
    func fill(_ numbers: inout [Float], lanes: Range<Int>, with number: (_ lane: Int, _ feature: Int) -> Float) {
        for lane in lanes {
            for feature in 0..<features {
                numbers[lane * laneStride + feature * featureStride] = number(lane - lanes.lowerBound, feature)
            }
        }
    }
}

/// nil where an axis is empty or the product too large.
private func product(_ axes: some Sequence<Int>) -> Int? {
    axes.reduce(1) { (made: Int?, axis) in
        guard let made, axis > 0 else { return nil }
        let (value, tooLarge) = made.multipliedReportingOverflow(by: axis)
        return tooLarge || value > 1 << 40 ? nil : value
    }
}
