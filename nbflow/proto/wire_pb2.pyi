from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data", "blob", "segment", "chunks")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    blob: str
    segment: Segment
    chunks: int
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., blob: _Optional[str] = ..., segment: _Optional[_Union[Segment, _Mapping]] = ..., chunks: _Optional[int] = ...) -> None: ...

class Segment(_message.Message):
    __slots__ = ("name", "offset")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    name: str
    offset: int
    def __init__(self, name: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("dtype", "known_rank", "shape", "resource")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    KNOWN_RANK_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    known_rank: bool
    shape: _containers.RepeatedScalarFieldContainer[int]
    resource: bool
    def __init__(self, dtype: _Optional[str] = ..., known_rank: _Optional[bool] = ..., shape: _Optional[_Iterable[int]] = ..., resource: _Optional[bool] = ...) -> None: ...

class Attr(_message.Message):
    __slots__ = ("none", "boolean", "integer", "big", "real", "text", "dtype", "array", "items", "body")
    NONE_FIELD_NUMBER: _ClassVar[int]
    BOOLEAN_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    BIG_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    none: bool
    boolean: bool
    integer: int
    big: str
    real: float
    text: str
    dtype: str
    array: Tensor
    items: AttrList
    body: BodyDef
    def __init__(self, none: _Optional[bool] = ..., boolean: _Optional[bool] = ..., integer: _Optional[int] = ..., big: _Optional[str] = ..., real: _Optional[float] = ..., text: _Optional[str] = ..., dtype: _Optional[str] = ..., array: _Optional[_Union[Tensor, _Mapping]] = ..., items: _Optional[_Union[AttrList, _Mapping]] = ..., body: _Optional[_Union[BodyDef, _Mapping]] = ...) -> None: ...

class AttrList(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Attr]
    def __init__(self, items: _Optional[_Iterable[_Union[Attr, _Mapping]]] = ...) -> None: ...

class NodeDef(_message.Message):
    __slots__ = ("name", "op", "inputs", "control_inputs", "attrs", "outputs", "device", "colocate", "owner_id", "owner_label", "line", "auto_named")
    class AttrsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Attr
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Attr, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_INPUTS_FIELD_NUMBER: _ClassVar[int]
    ATTRS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    COLOCATE_FIELD_NUMBER: _ClassVar[int]
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_LABEL_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    AUTO_NAMED_FIELD_NUMBER: _ClassVar[int]
    name: str
    op: str
    inputs: _containers.RepeatedScalarFieldContainer[str]
    control_inputs: _containers.RepeatedScalarFieldContainer[str]
    attrs: _containers.MessageMap[str, Attr]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    device: str
    colocate: _containers.RepeatedScalarFieldContainer[str]
    owner_id: str
    owner_label: str
    line: int
    auto_named: bool
    def __init__(self, name: _Optional[str] = ..., op: _Optional[str] = ..., inputs: _Optional[_Iterable[str]] = ..., control_inputs: _Optional[_Iterable[str]] = ..., attrs: _Optional[_Mapping[str, Attr]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., device: _Optional[str] = ..., colocate: _Optional[_Iterable[str]] = ..., owner_id: _Optional[str] = ..., owner_label: _Optional[str] = ..., line: _Optional[int] = ..., auto_named: _Optional[bool] = ...) -> None: ...

class BodyDef(_message.Message):
    __slots__ = ("nodes", "arguments", "outputs")
    NODES_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeDef]
    arguments: _containers.RepeatedScalarFieldContainer[str]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, nodes: _Optional[_Iterable[_Union[NodeDef, _Mapping]]] = ..., arguments: _Optional[_Iterable[str]] = ..., outputs: _Optional[_Iterable[str]] = ...) -> None: ...

class GraphDef(_message.Message):
    __slots__ = ("version", "seed", "nodes", "generations")
    class GenerationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    version: int
    seed: int
    nodes: _containers.RepeatedCompositeFieldContainer[NodeDef]
    generations: _containers.ScalarMap[str, int]
    def __init__(self, version: _Optional[int] = ..., seed: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[NodeDef, _Mapping]]] = ..., generations: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Instruction(_message.Message):
    __slots__ = ("node", "op", "inputs", "outputs", "attrs", "after", "frees", "key", "buffer", "where", "bodies")
    class AttrsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Attr
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Attr, _Mapping]] = ...) -> None: ...
    NODE_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ATTRS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    FREES_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    BUFFER_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    BODIES_FIELD_NUMBER: _ClassVar[int]
    node: str
    op: str
    inputs: _containers.RepeatedScalarFieldContainer[int]
    outputs: _containers.RepeatedScalarFieldContainer[int]
    attrs: _containers.MessageMap[str, Attr]
    after: _containers.RepeatedScalarFieldContainer[int]
    frees: _containers.RepeatedScalarFieldContainer[int]
    key: str
    buffer: int
    where: str
    bodies: _containers.RepeatedCompositeFieldContainer[Plan]
    def __init__(self, node: _Optional[str] = ..., op: _Optional[str] = ..., inputs: _Optional[_Iterable[int]] = ..., outputs: _Optional[_Iterable[int]] = ..., attrs: _Optional[_Mapping[str, Attr]] = ..., after: _Optional[_Iterable[int]] = ..., frees: _Optional[_Iterable[int]] = ..., key: _Optional[str] = ..., buffer: _Optional[int] = ..., where: _Optional[str] = ..., bodies: _Optional[_Iterable[_Union[Plan, _Mapping]]] = ...) -> None: ...

class Constant(_message.Message):
    __slots__ = ("slot", "value")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    slot: int
    value: Tensor
    def __init__(self, slot: _Optional[int] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Feed(_message.Message):
    __slots__ = ("name", "slot", "spec")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    name: str
    slot: int
    spec: TensorSpec
    def __init__(self, name: _Optional[str] = ..., slot: _Optional[int] = ..., spec: _Optional[_Union[TensorSpec, _Mapping]] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ("name", "slot", "copy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    name: str
    slot: int
    copy: bool
    def __init__(self, name: _Optional[str] = ..., slot: _Optional[int] = ..., copy: _Optional[bool] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("device", "instructions", "slots", "constants", "feeds", "fetches", "buffers", "seed")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTIONS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    CONSTANTS_FIELD_NUMBER: _ClassVar[int]
    FEEDS_FIELD_NUMBER: _ClassVar[int]
    FETCHES_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    device: str
    instructions: _containers.RepeatedCompositeFieldContainer[Instruction]
    slots: int
    constants: _containers.RepeatedCompositeFieldContainer[Constant]
    feeds: _containers.RepeatedCompositeFieldContainer[Feed]
    fetches: _containers.RepeatedCompositeFieldContainer[Fetch]
    buffers: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    seed: int
    def __init__(self, device: _Optional[str] = ..., instructions: _Optional[_Iterable[_Union[Instruction, _Mapping]]] = ..., slots: _Optional[int] = ..., constants: _Optional[_Iterable[_Union[Constant, _Mapping]]] = ..., feeds: _Optional[_Iterable[_Union[Feed, _Mapping]]] = ..., fetches: _Optional[_Iterable[_Union[Fetch, _Mapping]]] = ..., buffers: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., seed: _Optional[int] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("id", "task", "plans")
    ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    PLANS_FIELD_NUMBER: _ClassVar[int]
    id: str
    task: str
    plans: _containers.RepeatedCompositeFieldContainer[Plan]
    def __init__(self, id: _Optional[str] = ..., task: _Optional[str] = ..., plans: _Optional[_Iterable[_Union[Plan, _Mapping]]] = ...) -> None: ...

class StepCommand(_message.Message):
    __slots__ = ("bundle", "lane", "step_id", "number", "feeds", "trace", "deadline_s", "check_numerics")
    class FeedsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FEEDS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    CHECK_NUMERICS_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    lane: str
    step_id: str
    number: int
    feeds: _containers.MessageMap[str, Tensor]
    trace: bool
    deadline_s: float
    check_numerics: bool
    def __init__(self, bundle: _Optional[str] = ..., lane: _Optional[str] = ..., step_id: _Optional[str] = ..., number: _Optional[int] = ..., feeds: _Optional[_Mapping[str, Tensor]] = ..., trace: _Optional[bool] = ..., deadline_s: _Optional[float] = ..., check_numerics: _Optional[bool] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("step_id", "fetches", "events")
    class FetchesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    FETCHES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    step_id: str
    fetches: _containers.MessageMap[str, Tensor]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, step_id: _Optional[str] = ..., fetches: _Optional[_Mapping[str, Tensor]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class MetricSource(_message.Message):
    __slots__ = ("name", "task", "fetch")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    name: str
    task: str
    fetch: str
    def __init__(self, name: _Optional[str] = ..., task: _Optional[str] = ..., fetch: _Optional[str] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("plan", "metrics", "every", "batches", "last")
    class PlanEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PLAN_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    plan: _containers.ScalarMap[str, str]
    metrics: _containers.RepeatedCompositeFieldContainer[MetricSource]
    every: int
    batches: int
    last: int
    def __init__(self, plan: _Optional[_Mapping[str, str]] = ..., metrics: _Optional[_Iterable[_Union[MetricSource, _Mapping]]] = ..., every: _Optional[int] = ..., batches: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class SavedShard(_message.Message):
    __slots__ = ("plan", "values")
    class PlanEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PLAN_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    plan: _containers.ScalarMap[str, str]
    values: _containers.RepeatedCompositeFieldContainer[MetricSource]
    def __init__(self, plan: _Optional[_Mapping[str, str]] = ..., values: _Optional[_Iterable[_Union[MetricSource, _Mapping]]] = ...) -> None: ...

class Saving(_message.Message):
    __slots__ = ("folder", "shards", "every", "last", "about")
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    folder: str
    shards: _containers.RepeatedCompositeFieldContainer[SavedShard]
    every: int
    last: int
    about: str
    def __init__(self, folder: _Optional[str] = ..., shards: _Optional[_Iterable[_Union[SavedShard, _Mapping]]] = ..., every: _Optional[int] = ..., last: _Optional[int] = ..., about: _Optional[str] = ...) -> None: ...

class Loop(_message.Message):
    __slots__ = ("id", "run", "step", "report", "metrics", "first", "steps", "every", "stop_on_nan", "replica", "finish", "about", "evaluation", "saving")
    class StepEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ReportEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class FinishEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    STOP_ON_NAN_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    ABOUT_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    SAVING_FIELD_NUMBER: _ClassVar[int]
    id: str
    run: str
    step: _containers.ScalarMap[str, str]
    report: _containers.ScalarMap[str, str]
    metrics: _containers.RepeatedCompositeFieldContainer[MetricSource]
    first: int
    steps: int
    every: int
    stop_on_nan: bool
    replica: str
    finish: _containers.ScalarMap[str, str]
    about: str
    evaluation: Evaluation
    saving: Saving
    def __init__(self, id: _Optional[str] = ..., run: _Optional[str] = ..., step: _Optional[_Mapping[str, str]] = ..., report: _Optional[_Mapping[str, str]] = ..., metrics: _Optional[_Iterable[_Union[MetricSource, _Mapping]]] = ..., first: _Optional[int] = ..., steps: _Optional[int] = ..., every: _Optional[int] = ..., stop_on_nan: _Optional[bool] = ..., replica: _Optional[str] = ..., finish: _Optional[_Mapping[str, str]] = ..., about: _Optional[str] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., saving: _Optional[_Union[Saving, _Mapping]] = ...) -> None: ...

class StepStarted(_message.Message):
    __slots__ = ("step", "wall_s")
    STEP_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    step: int
    wall_s: float
    def __init__(self, step: _Optional[int] = ..., wall_s: _Optional[float] = ...) -> None: ...

class StepFinished(_message.Message):
    __slots__ = ("step", "wall_s", "duration_s", "error")
    STEP_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    step: int
    wall_s: float
    duration_s: float
    error: str
    def __init__(self, step: _Optional[int] = ..., wall_s: _Optional[float] = ..., duration_s: _Optional[float] = ..., error: _Optional[str] = ...) -> None: ...

class NodeFinished(_message.Message):
    __slots__ = ("node", "device", "start_s", "duration_s", "nbytes")
    NODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    node: str
    device: str
    start_s: float
    duration_s: float
    nbytes: int
    def __init__(self, node: _Optional[str] = ..., device: _Optional[str] = ..., start_s: _Optional[float] = ..., duration_s: _Optional[float] = ..., nbytes: _Optional[int] = ...) -> None: ...

class TensorMoved(_message.Message):
    __slots__ = ("key", "source", "destination", "nbytes", "start_s", "duration_s", "waited_s", "via", "compress", "error")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    WAITED_S_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    COMPRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    key: str
    source: str
    destination: str
    nbytes: int
    start_s: float
    duration_s: float
    waited_s: float
    via: str
    compress: str
    error: float
    def __init__(self, key: _Optional[str] = ..., source: _Optional[str] = ..., destination: _Optional[str] = ..., nbytes: _Optional[int] = ..., start_s: _Optional[float] = ..., duration_s: _Optional[float] = ..., waited_s: _Optional[float] = ..., via: _Optional[str] = ..., compress: _Optional[str] = ..., error: _Optional[float] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("run", "name", "step", "value", "wall_s", "replica")
    RUN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    run: str
    name: str
    step: int
    value: float
    wall_s: float
    replica: str
    def __init__(self, run: _Optional[str] = ..., name: _Optional[str] = ..., step: _Optional[int] = ..., value: _Optional[float] = ..., wall_s: _Optional[float] = ..., replica: _Optional[str] = ...) -> None: ...

class RunState(_message.Message):
    __slots__ = ("run", "status", "step", "steps", "wall_s", "detail", "loop")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    run: str
    status: str
    step: int
    steps: int
    wall_s: float
    detail: str
    loop: str
    def __init__(self, run: _Optional[str] = ..., status: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., wall_s: _Optional[float] = ..., detail: _Optional[str] = ..., loop: _Optional[str] = ...) -> None: ...

class Saved(_message.Message):
    __slots__ = ("run", "step", "folder", "wall_s", "loop")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    run: str
    step: int
    folder: str
    wall_s: float
    loop: str
    def __init__(self, run: _Optional[str] = ..., step: _Optional[int] = ..., folder: _Optional[str] = ..., wall_s: _Optional[float] = ..., loop: _Optional[str] = ...) -> None: ...

class WorkerState(_message.Message):
    __slots__ = ("worker", "state", "address", "wall_s", "detail")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    worker: str
    state: str
    address: str
    wall_s: float
    detail: str
    def __init__(self, worker: _Optional[str] = ..., state: _Optional[str] = ..., address: _Optional[str] = ..., wall_s: _Optional[float] = ..., detail: _Optional[str] = ...) -> None: ...

class Log(_message.Message):
    __slots__ = ("worker", "level", "message", "wall_s")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    WALL_S_FIELD_NUMBER: _ClassVar[int]
    worker: str
    level: str
    message: str
    wall_s: float
    def __init__(self, worker: _Optional[str] = ..., level: _Optional[str] = ..., message: _Optional[str] = ..., wall_s: _Optional[float] = ...) -> None: ...

class OpTimes(_message.Message):
    __slots__ = ("bundle", "nodes", "seconds")
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    bundle: str
    nodes: _containers.RepeatedScalarFieldContainer[str]
    seconds: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, bundle: _Optional[str] = ..., nodes: _Optional[_Iterable[str]] = ..., seconds: _Optional[_Iterable[float]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("step_started", "step_finished", "node_finished", "tensor_moved", "metric", "run_state", "worker_state", "log", "op_times", "saved")
    STEP_STARTED_FIELD_NUMBER: _ClassVar[int]
    STEP_FINISHED_FIELD_NUMBER: _ClassVar[int]
    NODE_FINISHED_FIELD_NUMBER: _ClassVar[int]
    TENSOR_MOVED_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    RUN_STATE_FIELD_NUMBER: _ClassVar[int]
    WORKER_STATE_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    OP_TIMES_FIELD_NUMBER: _ClassVar[int]
    SAVED_FIELD_NUMBER: _ClassVar[int]
    step_started: StepStarted
    step_finished: StepFinished
    node_finished: NodeFinished
    tensor_moved: TensorMoved
    metric: Metric
    run_state: RunState
    worker_state: WorkerState
    log: Log
    op_times: OpTimes
    saved: Saved
    def __init__(self, step_started: _Optional[_Union[StepStarted, _Mapping]] = ..., step_finished: _Optional[_Union[StepFinished, _Mapping]] = ..., node_finished: _Optional[_Union[NodeFinished, _Mapping]] = ..., tensor_moved: _Optional[_Union[TensorMoved, _Mapping]] = ..., metric: _Optional[_Union[Metric, _Mapping]] = ..., run_state: _Optional[_Union[RunState, _Mapping]] = ..., worker_state: _Optional[_Union[WorkerState, _Mapping]] = ..., log: _Optional[_Union[Log, _Mapping]] = ..., op_times: _Optional[_Union[OpTimes, _Mapping]] = ..., saved: _Optional[_Union[Saved, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("type", "message", "where", "op", "device", "worker")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    type: str
    message: str
    where: str
    op: str
    device: str
    worker: str
    def __init__(self, type: _Optional[str] = ..., message: _Optional[str] = ..., where: _Optional[str] = ..., op: _Optional[str] = ..., device: _Optional[str] = ..., worker: _Optional[str] = ...) -> None: ...

class Envelope(_message.Message):
    __slots__ = ("magic", "version", "bundle", "command", "result", "loop", "event", "error")
    MAGIC_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    LOOP_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    magic: int
    version: int
    bundle: Bundle
    command: StepCommand
    result: StepResult
    loop: Loop
    event: Event
    error: Error
    def __init__(self, magic: _Optional[int] = ..., version: _Optional[int] = ..., bundle: _Optional[_Union[Bundle, _Mapping]] = ..., command: _Optional[_Union[StepCommand, _Mapping]] = ..., result: _Optional[_Union[StepResult, _Mapping]] = ..., loop: _Optional[_Union[Loop, _Mapping]] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...
