// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "LoRAEdgeKit",
    platforms: [.macOS(.v14), .iOS(.v17)],
    products: [
        .library(name: "LoRAEdgeKit", targets: ["LoRAEdgeKit", "LoRAEdgeCoreML"])
    ],
    targets: [
        // Files and lanes: Foundation alone, so that it builds and is tested on Linux too.
        .target(name: "LoRAEdgeKit"),
        // Feature values for Core ML; empty where there is no Core ML.
        .target(name: "LoRAEdgeCoreML", dependencies: ["LoRAEdgeKit"]),
        .testTarget(name: "LoRAEdgeKitTests", dependencies: ["LoRAEdgeKit"], resources: [.copy("Resources/Vectors")]),
    ]
)
