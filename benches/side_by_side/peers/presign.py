"""boto3 makes a link: nanoseconds each."""

import sys
import time

import boto3
from botocore.config import Config

s3 = boto3.client(
    "s3",
    endpoint_url="http://127.0.0.1:9000",
    aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
    aws_secret_access_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    region_name="us-east-1",
    config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
)
params = {"Bucket": "calls", "Key": sys.argv[1]}
for links in (100, 2000):
    began = time.perf_counter_ns()
    for _ in range(links):
        s3.generate_presigned_url("get_object", Params=params, ExpiresIn=4500)
    taken = time.perf_counter_ns() - began
print(taken / links)
