/// IEEE 754 half precision as its 16 bits. Swift's own `Float16` is missing on Intel Macs.
public enum Half {
    /// The largest finite number.
    public static let greatest: Float = 65504

    /// The number that the bits stand for, exactly.
    public static func float(_ bits: UInt16) -> Float {
        let sign = UInt32(bits & 0x8000) << 16
        let exponent = UInt32(bits >> 10) & 0x1F
        let fraction = UInt32(bits & 0x3FF)
        switch exponent {
        case 0:  // zero and subnormals: a multiple of 2^-24
            let magnitude = Float(fraction) * Float(sign: .plus, exponent: -24, significand: 1)
            return sign == 0 ? magnitude : -magnitude
        case 0x1F:
            return Float(bitPattern: sign | 0x7F80_0000 | fraction << 13)
        default:
            return Float(bitPattern: sign | (exponent + 112) << 23 | fraction << 13)
        }
    }

    /// The nearest half, ties to even; infinity beyond the largest.
    public static func bits(_ value: Float) -> UInt16 {
        let pattern = value.bitPattern
        let sign = UInt16(pattern >> 16) & 0x8000
        let magnitude = pattern & 0x7FFF_FFFF
        if magnitude > 0x7F80_0000 {  // NaN
            return sign | 0x7E00
        }
        if magnitude < 0x3880_0000 {  // below the smallest normal half: whole multiples of 2^-24
            let scaled = Float(bitPattern: magnitude) * Float(sign: .plus, exponent: 24, significand: 1)
            return sign | UInt16(scaled.rounded(.toNearestOrEven))
        }
        let shifted = magnitude - (112 << 23)
        let rounded = (shifted + 0xFFF + (shifted >> 13 & 1)) >> 13
        return sign | UInt16(min(rounded, 0x7C00))
    }
}
