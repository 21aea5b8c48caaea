"""Python client of lossd, the loss daemon.

Example:
    >>> import numpy as np
    >>> from lossd_client import Client, losses
    >>> logits = np.zeros((2, 4, 64, 64), np.float32)
    >>> target = np.zeros((2, 64, 64), np.uint8)
    >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
    ...     result = client.evaluate([losses.Dice()], logits=logits, target=target)
    ...     result["dice"]
    array([0.75, 0.75])
"""

from lossd_client import errors, losses
from lossd_client._async_client import AsyncClient
from lossd_client._client import Client
from lossd_client._refs import TensorRef
from lossd_client._result import Result
from lossd_client._version import __version__

__all__ = ["AsyncClient", "Client", "Result", "TensorRef", "__version__", "errors", "losses"]
