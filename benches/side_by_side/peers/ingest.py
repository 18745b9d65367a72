"""What an application does by itself: fetch, hash, put; eight at a time, in one process that lives on.

Reads the numbers of recordings, a line each time; answers with its CPU seconds and the seconds that passed.
"""

import hashlib
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
import requests
from botocore.config import Config

AT_ONCE = 8
origin, account, token, endpoint, bucket = sys.argv[1:]
s3 = boto3.client(
    "s3",
    endpoint_url=endpoint,
    region_name="us-east-1",
    config=Config(max_pool_connections=AT_ONCE, s3={"addressing_style": "path"}),
)
own = threading.local()


def session():
    if not hasattr(own, "session"):
        own.session = requests.Session()
        own.session.auth = (account, token)
    return own.session


def ingest(number):
    sid = f"RE{number:032x}"
    answer = session().get(f"{origin}/2010-04-01/Accounts/{account}/Recordings/{sid}.wav")
    answer.raise_for_status()
    digest = hashlib.sha256(answer.content).hexdigest()
    key = f"CA{number:032x}/{sid}/{digest}.wav"
    s3.put_object(Bucket=bucket, Key=key, Body=answer.content, ContentType="audio/wav", Metadata={"sha256": digest})


def cpu():
    times = os.times()
    return times.user + times.system


with ThreadPoolExecutor(AT_ONCE) as pool:
    for line in sys.stdin:
        first, last = map(int, line.split())
        began, spent = time.monotonic(), cpu()
        list(pool.map(ingest, range(first, last)))
        print(cpu() - spent, time.monotonic() - began, flush=True)
