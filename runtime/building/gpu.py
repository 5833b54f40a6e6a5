"""The GPU of this machine, as the driver describes it."""

import ctypes

# Of the driver's CUdevice_attribute.
_CAPABILITY = (75, 76)


def compute_capability() -> str | None:
    """That of the first GPU, as "8.9"; None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    parts = []
    for attribute in _CAPABILITY:
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
        parts.append(str(value.value))
    return ".".join(parts)
