"""Asks for the recordings of call logs, given as JSON, and says as JSON what came of each.

    python calls.py TIMEOUT '[{"call_sid": …, "recording_url": …}, …]'
"""

import hashlib
import json
import logging
import sys
import types

import callvault_client


def outcome(call_log, timeout):
    try:
        path = callvault_client.get_recording_file_for_call(types.SimpleNamespace(**call_log), timeout=timeout)
    except callvault_client.RecordingPending as pending:
        return {"pending": pending.retry_after, "unavailable": isinstance(pending, callvault_client.ServiceUnavailable)}
    except callvault_client.CallvaultError as error:
        return {"error": type(error).__name__, "told": str(error)}
    if path is None:
        return None
    with open(path, "rb") as file:
        return {"path": path, "sha256": hashlib.sha256(file.read()).hexdigest()}


logging.basicConfig(level=logging.INFO, stream=sys.stderr)
print(json.dumps([outcome(call_log, float(sys.argv[1])) for call_log in json.loads(sys.argv[2])]))
