import Foundation

/// JSON out of a file that somebody else may have written; nil for whatever is not a `Value`.
///
/// `JSONDecoder` alone ends the app at a name with a broken escape (seen in Foundation of Swift 6.0.3, where it
/// unwraps names by force), so the text is parsed whole by `JSONSerialization` first.
func decoded<Value: Decodable>(_ type: Value.Type, from text: Data) -> Value? {
    guard (try? JSONSerialization.jsonObject(with: text)) != nil else { return nil }
    return try? JSONDecoder().decode(type, from: text)
}
