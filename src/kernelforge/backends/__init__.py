"""The backend interface and the registry; no backend's code."""

from .capabilities import Capabilities, CapabilityError
from .execution import Execution, executing
from .interface import Backend, CompileFailed, CompilerMissing, Device, DeviceUnavailable, Executable, Tool
from .launch import Argument, LaunchInfo, Parameter, Workspace
from .registry import backend, backends, broken, device, device_for_tensor

__all__ = [
    "Argument",
    "Backend",
    "Capabilities",
    "CapabilityError",
    "CompileFailed",
    "CompilerMissing",
    "Device",
    "DeviceUnavailable",
    "Executable",
    "Execution",
    "LaunchInfo",
    "Parameter",
    "Tool",
    "Workspace",
    "backend",
    "backends",
    "broken",
    "device",
    "device_for_tensor",
    "executing",
]
