"""Every way in which lora-edge refuses, as a class.

LoraEdgeError
├── AdapterError
│   ├── AdapterNotFound        no adapter of that name in the folder
│   ├── AdapterFileDamaged     not a readable tensor file: truncated, overlapping, foreign, too large
│   ├── PickleRefused          a pickle or picture that holds, or asks for, anything but tensors; nothing was run
│   ├── AdapterValueError      a NaN or an infinity among the numbers
│   ├── AdapterMismatch        tensors that fit no slot of the bundle, or have another shape
│   ├── PackMismatch           a pack for another bundle, or written for another format or graph contract
│   ├── AdapterTooLarge        more memory than was allowed, told before it is taken
│   ├── RankTooLarge           more lanes together than a graph of a fixed rank has
│   ├── BaseNeeded             a kind that is computed from the base's weights, and no base
│   ├── UnknownKind            leaves that no kind claims
│   └── AmbiguousKind          leaves that two kinds claim
├── BundleError
│   ├── BundleNotFound         no bundle in that folder
│   ├── BundleVersionError     written for another format or graph contract
│   ├── BundleDamaged          a file is missing, truncated, changed, or lies outside the folder
│   ├── OperationUnknown       a Core ML package uses something that is not evaluated here
│   └── ComponentMissing       the bundle holds no such component
├── BackendError
│   ├── BackendUnavailable     the backend or execution provider is not installed on this machine
│   └── GraphFailed            the graph refused its inputs or gave numbers that are not finite
├── PromptError                a malformed tag; carries the position in the text
├── RequestError               a setting of a request that cannot be met
├── ExportError
│   ├── CheckpointError        a source folder that cannot be read or is of an unknown architecture
│   └── VerificationError      the exported graph differs from torch by more than the bound
└── Cancelled                  the caller stopped a request between two steps

Each message is one sentence or two: what is wrong, where, and what to do about it.
"""


class LoraEdgeError(Exception):
    """The root: catch this to catch every refusal of lora-edge."""


def first_line(error: Exception) -> str:
    """What another program's error says, short enough for a sentence of ours."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class AdapterError(LoraEdgeError):
    """Something about an adapter."""


class AdapterNotFound(AdapterError):
    """No adapter of that name in the folder."""


class AdapterFileDamaged(AdapterError):
    """The file is not a readable tensor file."""


class PickleRefused(AdapterError):
    """The file asks for something that is no tensor, or for more than any adapter holds; nothing in it was run."""


class AdapterValueError(AdapterError):
    """The file holds NaN or infinite numbers."""


class AdapterMismatch(AdapterError):
    """Tensors of the file fit no slot of the bundle."""


class PackMismatch(AdapterError):
    """The pack was written for another bundle or version."""


class AdapterTooLarge(AdapterError):
    """The adapter would take more memory than was allowed."""


class RankTooLarge(AdapterError):
    """The adapters have more lanes together than a graph of a fixed rank."""


class BaseNeeded(AdapterError):
    """The kind is computed from the weights of the base, and none are at hand."""


class UnknownKind(AdapterError):
    """No adapter kind claims these leaves."""


class AmbiguousKind(AdapterError):
    """More than one adapter kind claims these leaves."""


class BundleError(LoraEdgeError):
    """Something about a bundle."""


class BundleNotFound(BundleError):
    """The folder holds no bundle."""


class BundleVersionError(BundleError):
    """The bundle was written for another version."""


class BundleDamaged(BundleError):
    """A file of the bundle is missing, changed or outside its folder."""


class OperationUnknown(BundleError):
    """A Core ML package uses an operation or a type that is not evaluated here."""


class ComponentMissing(BundleError):
    """The bundle lacks a component that the request needs."""


class BackendError(LoraEdgeError):
    """Something about what runs the graphs."""


class BackendUnavailable(BackendError):
    """The backend or execution provider is not there."""


class GraphFailed(BackendError):
    """A graph refused its inputs or gave numbers that are not finite."""


class PromptError(LoraEdgeError):
    """A malformed prompt.

    Attributes:
        text: the whole prompt.
        at: offset in characters of the place that is wrong.
    """

    def __init__(self, message: str, text: str, at: int) -> None:
        start = text.rfind("\n", 0, at) + 1
        line = text[start:].split("\n", 1)[0]
        super().__init__(f"{message}\n  {line}\n  {' ' * (at - start)}^")
        self.text = text
        self.at = at


class RequestError(LoraEdgeError):
    """A setting of a request cannot be met."""


class ExportError(LoraEdgeError):
    """Something about an export."""


class CheckpointError(ExportError):
    """The source cannot be read as a checkpoint."""


class VerificationError(ExportError):
    """The exported graph is not the model it was made from."""


class Cancelled(LoraEdgeError):
    """The caller stopped the request."""
