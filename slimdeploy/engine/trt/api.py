"""Every attribute of TensorRT's bindings that this package calls.

A test reads the code of this package and finds no other; `python -m tools.trt_api` asks the real
bindings of each supported version whether they have them. What is called only where it exists
stands apart.
"""

from __future__ import annotations

_ALWAYS = """
Builder.build_serialized_network
Builder.create_builder_config
Builder.create_network
Builder.create_optimization_profile
BuilderFlag.VERSION_COMPATIBLE
HardwareCompatibilityLevel.AMPERE_PLUS
IBuilderConfig.add_optimization_profile
IBuilderConfig.builder_optimization_level
IBuilderConfig.create_timing_cache
IBuilderConfig.get_timing_cache
IBuilderConfig.hardware_compatibility_level
IBuilderConfig.profiling_verbosity
IBuilderConfig.progress_monitor
IBuilderConfig.set_flag
IBuilderConfig.set_memory_pool_limit
IBuilderConfig.set_timing_cache
ICudaEngine.create_engine_inspector
ICudaEngine.create_execution_context
EngineInspector.get_engine_information
IExecutionContext.execute_async_v3
IExecutionContext.get_tensor_shape
IExecutionContext.set_input_shape
IExecutionContext.set_tensor_address
ILayer.get_input
ILayer.get_output
ILayer.name
ILayer.type
ILogger.ERROR
ILogger.INTERNAL_ERROR
ILogger.log
INetworkDefinition.get_input
INetworkDefinition.get_layer
INetworkDefinition.get_output
INetworkDefinition.num_inputs
INetworkDefinition.num_layers
INetworkDefinition.num_outputs
IOptimizationProfile.set_shape
IProgressMonitor.phase_finish
IProgressMonitor.phase_start
IProgressMonitor.step_complete
ITensor.dtype
ITensor.name
ITensor.shape
ITimingCache.serialize
LayerInformationFormat.JSON
LayerType.SOFTMAX
MemoryPoolType.WORKSPACE
NetworkDefinitionCreationFlag.STRONGLY_TYPED
OnnxParser.get_error
OnnxParser.num_errors
OnnxParser.parse_from_file
ParserError.desc
ParserError.node_name
ParserError.node_operator
ProfilingVerbosity.DETAILED
Runtime.deserialize_cuda_engine
Runtime.engine_host_code_allowed
DataType.BF16
DataType.FLOAT
DataType.FP8
DataType.HALF
"""

ALWAYS: tuple[str, ...] = tuple(_ALWAYS.split())
"""Called without asking: every supported version must have them."""

WHERE_PRESENT = ("HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY", "LayerType.ATTENTION_INPUT")
"""Looked for first; a version without them does without."""

RTX_ONLY = (
    "ComputeCapability.SM120",
    "ComputeCapability.SM121",
    "ComputeCapability.SM75",
    "ComputeCapability.SM80",
    "ComputeCapability.SM86",
    "ComputeCapability.SM89",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
)
"""Called of `tensorrt_rtx` alone."""
