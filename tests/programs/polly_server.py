"""moto's Polly, with its check of signatures and permissions switched on, and a user who may do anything.

Says where it is and the user's keys, then waits for the end of stdin.
"""

import json
import logging
import os
import sys

# Four calls set up the user; from then on every request is checked.
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "4"

import boto3  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
endpoint = "http://{}:{}".format(host, port)
iam = boto3.client(
    "iam",
    endpoint_url=endpoint,
    region_name="us-east-1",
    aws_access_key_id="any",
    aws_secret_access_key="any",
)
everything = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}
policy = iam.create_policy(PolicyName="everything", PolicyDocument=json.dumps(everything))
iam.create_user(UserName="speaker")
iam.attach_user_policy(UserName="speaker", PolicyArn=policy["Policy"]["Arn"])
keys = iam.create_access_key(UserName="speaker")["AccessKey"]
greeting = {"endpoint": endpoint, "id": keys["AccessKeyId"], "key": keys["SecretAccessKey"]}
print(json.dumps(greeting), flush=True)
sys.stdin.read()
server.stop()
