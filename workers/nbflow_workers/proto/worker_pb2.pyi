from nbflow.proto import wire_pb2 as _wire_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("wire_version",)
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    def __init__(self, wire_version: _Optional[int] = ...) -> None: ...

class DeviceInfo(_message.Message):
    __slots__ = ("device", "description", "memory_bytes", "flops", "cores", "threads")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    device: str
    description: str
    memory_bytes: int
    flops: float
    cores: int
    threads: int
    def __init__(self, device: _Optional[str] = ..., description: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., flops: _Optional[float] = ..., cores: _Optional[int] = ..., threads: _Optional[int] = ...) -> None: ...

class DataEndpoint(_message.Message):
    __slots__ = ("address", "public_key", "host_id")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    address: str
    public_key: bytes
    host_id: str
    def __init__(self, address: _Optional[str] = ..., public_key: _Optional[bytes] = ..., host_id: _Optional[str] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("wire_version", "job", "task", "incarnation", "pid", "devices", "versions", "allow_python", "data", "host_id", "memory_bytes", "cpu_percent", "sessions", "running_steps", "steps_done")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PYTHON_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    HOST_ID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_DONE_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    job: str
    task: int
    incarnation: str
    pid: int
    devices: _containers.RepeatedCompositeFieldContainer[DeviceInfo]
    versions: _containers.ScalarMap[str, str]
    allow_python: bool
    data: DataEndpoint
    host_id: str
    memory_bytes: int
    cpu_percent: float
    sessions: int
    running_steps: int
    steps_done: int
    def __init__(self, wire_version: _Optional[int] = ..., job: _Optional[str] = ..., task: _Optional[int] = ..., incarnation: _Optional[str] = ..., pid: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[DeviceInfo, _Mapping]]] = ..., versions: _Optional[_Mapping[str, str]] = ..., allow_python: _Optional[bool] = ..., data: _Optional[_Union[DataEndpoint, _Mapping]] = ..., host_id: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., cpu_percent: _Optional[float] = ..., sessions: _Optional[int] = ..., running_steps: _Optional[int] = ..., steps_done: _Optional[int] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("task", "address", "incarnation", "data")
    TASK_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    task: str
    address: str
    incarnation: str
    data: DataEndpoint
    def __init__(self, task: _Optional[str] = ..., address: _Optional[str] = ..., incarnation: _Optional[str] = ..., data: _Optional[_Union[DataEndpoint, _Mapping]] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("wire_version", "session", "secret", "peers", "incarnation", "ca")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CA_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    session: str
    secret: bytes
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    incarnation: str
    ca: bytes
    def __init__(self, wire_version: _Optional[int] = ..., session: _Optional[str] = ..., secret: _Optional[bytes] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., incarnation: _Optional[str] = ..., ca: _Optional[bytes] = ...) -> None: ...

class OpenSessionReply(_message.Message):
    __slots__ = ("life",)
    LIFE_FIELD_NUMBER: _ClassVar[int]
    life: str
    def __init__(self, life: _Optional[str] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("bundle",)
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    bundle: bytes
    def __init__(self, bundle: _Optional[bytes] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("missing",)
    MISSING_FIELD_NUMBER: _ClassVar[int]
    missing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, missing: _Optional[_Iterable[str]] = ...) -> None: ...

class BlobChunk(_message.Message):
    __slots__ = ("digest", "nbytes", "data")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    digest: str
    nbytes: int
    data: bytes
    def __init__(self, digest: _Optional[str] = ..., nbytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class StartLoopRequest(_message.Message):
    __slots__ = ("loop",)
    LOOP_FIELD_NUMBER: _ClassVar[int]
    loop: _wire_pb2.Loop
    def __init__(self, loop: _Optional[_Union[_wire_pb2.Loop, _Mapping]] = ...) -> None: ...

class ControlLoopRequest(_message.Message):
    __slots__ = ("loop_id", "action")
    LOOP_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    loop_id: str
    action: str
    def __init__(self, loop_id: _Optional[str] = ..., action: _Optional[str] = ...) -> None: ...

class UnregisterRequest(_message.Message):
    __slots__ = ("bundles",)
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    bundles: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, bundles: _Optional[_Iterable[str]] = ...) -> None: ...

class DropStateRequest(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, keys: _Optional[_Iterable[str]] = ...) -> None: ...

class EventReply(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_wire_pb2.Event]
    def __init__(self, events: _Optional[_Iterable[_Union[_wire_pb2.Event, _Mapping]]] = ...) -> None: ...

class RunsReply(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunEntry]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunEntry, _Mapping]]] = ...) -> None: ...

class RunEntry(_message.Message):
    __slots__ = ("run", "session", "about", "since_s", "states")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    run: str
    session: str
    about: str
    since_s: float
    states: _containers.RepeatedCompositeFieldContainer[_wire_pb2.Event]
    def __init__(self, run: _Optional[str] = ..., session: _Optional[str] = ..., about: _Optional[str] = ..., since_s: _Optional[float] = ..., states: _Optional[_Iterable[_Union[_wire_pb2.Event, _Mapping]]] = ...) -> None: ...

class LookAtFolderRequest(_message.Message):
    __slots__ = ("folder", "mark")
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    MARK_FIELD_NUMBER: _ClassVar[int]
    folder: str
    mark: str
    def __init__(self, folder: _Optional[str] = ..., mark: _Optional[str] = ...) -> None: ...

class LookAtFolderReply(_message.Message):
    __slots__ = ("is_shared", "newest")
    IS_SHARED_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    is_shared: bool
    newest: str
    def __init__(self, is_shared: _Optional[bool] = ..., newest: _Optional[str] = ...) -> None: ...

class ReadRunRequest(_message.Message):
    __slots__ = ("run", "after")
    RUN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    run: str
    after: int
    def __init__(self, run: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class ReadRunReply(_message.Message):
    __slots__ = ("events", "next", "more")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_wire_pb2.Event]
    next: int
    more: bool
    def __init__(self, events: _Optional[_Iterable[_Union[_wire_pb2.Event, _Mapping]]] = ..., next: _Optional[int] = ..., more: _Optional[bool] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("step_id", "reason")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    step_id: str
    reason: str
    def __init__(self, step_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ToWorker(_message.Message):
    __slots__ = ("run", "cancel")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    run: _wire_pb2.StepCommand
    cancel: Cancel
    def __init__(self, run: _Optional[_Union[_wire_pb2.StepCommand, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...

class StepFailed(_message.Message):
    __slots__ = ("step_id", "error")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    step_id: str
    error: _wire_pb2.Error
    def __init__(self, step_id: _Optional[str] = ..., error: _Optional[_Union[_wire_pb2.Error, _Mapping]] = ...) -> None: ...

class CancelDone(_message.Message):
    __slots__ = ("step_id", "error")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    step_id: str
    error: _wire_pb2.Error
    def __init__(self, step_id: _Optional[str] = ..., error: _Optional[_Union[_wire_pb2.Error, _Mapping]] = ...) -> None: ...

class FromWorker(_message.Message):
    __slots__ = ("done", "failed", "cancelled")
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    done: _wire_pb2.StepResult
    failed: StepFailed
    cancelled: CancelDone
    def __init__(self, done: _Optional[_Union[_wire_pb2.StepResult, _Mapping]] = ..., failed: _Optional[_Union[StepFailed, _Mapping]] = ..., cancelled: _Optional[_Union[CancelDone, _Mapping]] = ...) -> None: ...

class DataMessage(_message.Message):
    __slots__ = ("session", "source", "tensors", "credit", "stalled", "granted", "refused")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    STALLED_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    session: str
    source: str
    tensors: _containers.RepeatedCompositeFieldContainer[DataTensor]
    credit: int
    stalled: _containers.RepeatedCompositeFieldContainer[DataKey]
    granted: _containers.RepeatedCompositeFieldContainer[DataKey]
    refused: _containers.RepeatedCompositeFieldContainer[DataKey]
    def __init__(self, session: _Optional[str] = ..., source: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[DataTensor, _Mapping]]] = ..., credit: _Optional[int] = ..., stalled: _Optional[_Iterable[_Union[DataKey, _Mapping]]] = ..., granted: _Optional[_Iterable[_Union[DataKey, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[DataKey, _Mapping]]] = ...) -> None: ...

class DataTensor(_message.Message):
    __slots__ = ("step_id", "key", "tensor", "sent_s", "error")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    SENT_S_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    step_id: str
    key: str
    tensor: _wire_pb2.Tensor
    sent_s: float
    error: float
    def __init__(self, step_id: _Optional[str] = ..., key: _Optional[str] = ..., tensor: _Optional[_Union[_wire_pb2.Tensor, _Mapping]] = ..., sent_s: _Optional[float] = ..., error: _Optional[float] = ...) -> None: ...

class DataKey(_message.Message):
    __slots__ = ("step_id", "key", "nbytes", "reason")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    step_id: str
    key: str
    nbytes: int
    reason: str
    def __init__(self, step_id: _Optional[str] = ..., key: _Optional[str] = ..., nbytes: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class DataChunk(_message.Message):
    __slots__ = ("session", "source", "transfer", "offset")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    session: str
    source: str
    transfer: int
    offset: int
    def __init__(self, session: _Optional[str] = ..., source: _Optional[str] = ..., transfer: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class DataHello(_message.Message):
    __slots__ = ("session", "source", "secret")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    session: str
    source: str
    secret: bytes
    def __init__(self, session: _Optional[str] = ..., source: _Optional[str] = ..., secret: _Optional[bytes] = ...) -> None: ...

class DataSegment(_message.Message):
    __slots__ = ("number", "nbytes", "gone")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    GONE_FIELD_NUMBER: _ClassVar[int]
    number: int
    nbytes: int
    gone: bool
    def __init__(self, number: _Optional[int] = ..., nbytes: _Optional[int] = ..., gone: _Optional[bool] = ...) -> None: ...
