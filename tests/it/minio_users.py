"""Makes users of the tests' MinIO: one that may only read, one that may do all, and
a session of the latter. Says their keys as JSON."""
import json
import os

import boto3
from minio import MinioAdmin
from minio.credentials import StaticProvider

endpoint = os.environ["ENDPOINT"]
root = StaticProvider(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
admin = MinioAdmin(endpoint=endpoint.removeprefix("http://"), credentials=root, secure=False)


def policy(name, actions):
    statement = {"Effect": "Allow", "Action": actions, "Resource": ["arn:aws:s3:::*"]}
    admin.policy_add(name, policy={"Version": "2012-10-17", "Statement": [statement]})


def user(name, of_policy):
    secret = name + "-secret-0123456789"
    admin.user_add(name, secret)
    admin.policy_set(of_policy, user=name)
    return {"id": name, "secret": secret}


policy("only-read", ["s3:GetObject"])
policy("all-of-s3", ["s3:*"])
reader = user(os.environ["NAME"] + "-reader", "only-read")
worker = user(os.environ["NAME"] + "-worker", "all-of-s3")
sts = boto3.client("sts", endpoint_url=endpoint, region_name="us-east-1",
                   aws_access_key_id=worker["id"], aws_secret_access_key=worker["secret"])
session = sts.assume_role(RoleArn="arn:aws:iam::000000000000:role/x", RoleSessionName="callvault", DurationSeconds=900)
keys = session["Credentials"]
print(json.dumps({"reader": reader, "session": {
    "Version": 1, "AccessKeyId": keys["AccessKeyId"], "SecretAccessKey": keys["SecretAccessKey"],
    "SessionToken": keys["SessionToken"], "Expiration": keys["Expiration"].isoformat()}}))
