"""boto3 makes a link: nanoseconds each."""

import sys
import time

from links import s3

params = {"Bucket": "calls", "Key": sys.argv[1]}
for links in (100, 2000):
    began = time.perf_counter_ns()
    for _ in range(links):
        s3.generate_presigned_url("get_object", Params=params, ExpiresIn=4500)
    taken = time.perf_counter_ns() - began
print(taken / links)
