import Foundation

/// A safetensors file, mapped and not trusted: https://github.com/huggingface/safetensors#format
///
/// The header is checked whole when the file is opened. Tensors must follow one another and fill the file, so that
/// nothing that is read later can lie outside.
public struct SafeTensors {
    /// One tensor: axes outermost first, and its bytes counted from the end of the header.
    public struct Entry: Equatable {
        public let dtype: String
        public let shape: [Int]
        public let bytes: Range<Int>
    }

    /// The largest header that is read, in bytes; an adapter of 10,000 tensors has 1 MB.
    public static let largestHeader = 64 << 20

    /// The file's name, for sentences.
    public let name: String
    /// Tensors by name.
    public let entries: [String: Entry]
    /// The header's own strings.
    public let metadata: [String: String]

    private let data: Data
    private let start: Int

    /// - Throws: `Refusal.damaged` for anything that is not as the format says.
    public init(contentsOf url: URL) throws {
        let name = url.lastPathComponent
        func damaged(_ why: String) -> Refusal { .damaged(file: name, why: why) }
        guard let data = try? Data(contentsOf: url, options: .alwaysMapped) else {
            throw damaged("there is no such file")
        }
        guard data.count >= 8 else { throw damaged("it has no header") }
        let length = data.withUnsafeBytes { UInt64(littleEndian: $0.loadUnaligned(as: UInt64.self)) }
        guard length <= UInt64(min(Self.largestHeader, data.count - 8)) else { throw damaged("its header is cut off") }
        let start = 8 + Int(length)
        guard data[data.startIndex + 8..<data.startIndex + start].first == UInt8(ascii: "{"),
            let header = decoded(Header.self, from: data.subdata(in: 8..<start))
        else { throw damaged("its header is no map of dtype, shape and data_offsets") }

        self.name = name
        self.data = data
        self.start = start
        metadata = header.metadata
        entries = try header.tensors.mapValues { told in
            guard let entry = told.checked else { throw damaged("a tensor has another size than its shape and dtype") }
            return entry
        }
        var end = 0
        let places = entries.values.map(\.bytes)
        for place in places.sorted(by: { ($0.lowerBound, $0.upperBound) < ($1.lowerBound, $1.upperBound) }) {
            guard place.lowerBound == end else { throw damaged("its tensors overlap or leave a hole") }
            end = place.upperBound
        }
        guard end == data.count - start else { throw damaged("its tensors take \(end) bytes of \(data.count - start)") }
    }

    /// A tensor of halves or floats as floats, row-major; nil for a name that is not there or another dtype.
    public func floats(_ name: String) -> [Float]? {
        guard let entry = entries[name] else { return nil }
        return data.withUnsafeBytes { raw -> [Float]? in
            let place = start + entry.bytes.lowerBound..<start + entry.bytes.upperBound
            let bytes = UnsafeRawBufferPointer(rebasing: raw[place])
            switch entry.dtype {
            case "F16":
                return stride(from: 0, to: bytes.count, by: 2).map {
                    Half.float(UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: $0, as: UInt16.self)))
                }
            case "F32":
                return stride(from: 0, to: bytes.count, by: 4).map {
                    Float(bitPattern: UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: $0, as: UInt32.self)))
                }
            default:
                return nil
            }
        }
    }
}

/// The header as JSON has it.
private struct Header: Decodable {
    struct Told: Decodable {
        let dtype: String
        let shape: [Int]
        let data_offsets: [Int]

        static let sizes = [
            "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
            "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
        ]

        /// nil where anything is negative, too large, or contradicts something else.
        var checked: SafeTensors.Entry? {
            guard let size = Self.sizes[dtype], data_offsets.count == 2, data_offsets[0] >= 0,
                data_offsets[0] <= data_offsets[1], shape.count <= 32, shape.allSatisfy({ $0 >= 0 })
            else { return nil }
            var needed = size
            for axis in shape {
                let (product, tooLarge) = needed.multipliedReportingOverflow(by: axis)
                if tooLarge { return nil }
                needed = product
            }
            guard needed == data_offsets[1] - data_offsets[0] else { return nil }
            return SafeTensors.Entry(dtype: dtype, shape: shape, bytes: data_offsets[0]..<data_offsets[1])
        }
    }

    struct Name: CodingKey {
        let stringValue: String
        let intValue: Int? = nil
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue: Int) { nil }
    }

    var tensors: [String: Told] = [:]
    var metadata: [String: String] = [:]

    init(from decoder: Decoder) throws {
        let names = try decoder.container(keyedBy: Name.self)
        for name in names.allKeys {
            if name.stringValue == "__metadata__" {
                metadata = try names.decode([String: String].self, forKey: name)
            } else {
                tensors[name.stringValue] = try names.decode(Told.self, forKey: name)
            }
        }
    }
}
