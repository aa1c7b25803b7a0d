"""Whether a tracking server answers at all: asked before MLflow, which would try for minutes."""

import http.client
import urllib.error
import urllib.parse
import urllib.request

from seqfoundry.core import refusals
from seqfoundry.core.errors import TrackingError


def check(uri: str) -> None:
    """Ask a server whether it lives; any HTTP answer, a refusal too, says yes.

    Raises
    ------
    TrackingError
        If nothing answers, or ``uri`` is none.
    """
    try:
        parts = urllib.parse.urlsplit(uri)  # a path may hold an @ too
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        urllib.request.urlopen(f"{bare.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        return
    except (ValueError, http.client.InvalidURL):  # their messages repeat what may be a part of the password
        reason = "one that cannot be read; write : / @ of a password as %3A %2F %40"
        raise TrackingError(f"tracking server {refusals.shown(uri)}: must be a URI, got {reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = f"{getattr(error, 'reason', error)}; start it, change MLFLOW_TRACKING_URI, or use --no-track"
        raise TrackingError(f"tracking server {refusals.shown(uri)}: must answer, got: {reason}") from None
