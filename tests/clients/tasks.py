"""The Celery tasks and the webhook receiver, as an application runs them: the receiver on a
port, a real worker with its queue in this process.

    python tasks.py PORT CALL_SID RECORDING_URL RECORDINGS

Says what came of the call's task, and then of the tasks of so many webhooks.
"""

import json
import os
import sys
import threading
import time

import werkzeug.serving
from celery.contrib.testing.worker import start_worker
from celery.signals import task_success

os.environ["CELERY_BROKER_URL"] = "memory://"
import celery_app
import webhook_receiver

PATIENCE_SECONDS = 120


done = []


@task_success.connect(weak=False)
def note(sender, result, **_):
    """What tasks return, as they end."""
    done.append([sender.name.rsplit(".")[-1], list(sender.request.args), result])


def main(port, call_sid, recording_url, recordings):
    server = werkzeug.serving.make_server("127.0.0.1", port, webhook_receiver.app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    until = time.monotonic() + PATIENCE_SECONDS
    with start_worker(celery_app.app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        celery_app.transcribe_call.delay(call_sid, recording_url)
        while len({str(args) for _, args, _ in done}) < 1 + recordings:
            if time.monotonic() > until:
                raise AssertionError(f"waited in vain for {recordings} webhooks: {done}")
            time.sleep(0.02)
    server.shutdown()
    print(json.dumps(done))


main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
