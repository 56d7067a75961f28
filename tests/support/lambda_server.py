"""AWS Lambda for the tests: ministack, AWS's own runtime client, and a proxy that checks and logs.

ministack takes any signature and gives no log of a `provided` runtime. So the proxy in front of it
checks signatures as AWS does, and adds the end of the function's own log with a REPORT line.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from faulty_proxy import Answer, FaultyProxy, Request, faulty_proxy
from prefect_aws import AwsCredentials
from pydantic import SecretStr
from repository import ROOT

from prefect_renderfarm.blocks import AwsLambdaAdapter

ACCESS_KEY, SECRET, REGION = "AKIAFARM", "s3cret-of-the-functions", "eu-central-1"
HANDLER = ROOT / "deployments" / "lambda" / "handler.py"
MEMORY_MB = 512
BOOTSTRAP = f"""#!{sys.executable} -SI
import json, os, socket
here = os.path.dirname(os.path.abspath(__file__))
function = json.load(open(os.path.join(here, "function.json")))
environment = dict(os.environ) | function["environment"]
order = dict(environment=environment, folder=here, log=function["log"])
connection = socket.socket(socket.AF_UNIX)
connection.connect(function["socket"])
connection.sendall(json.dumps(order).encode() + b"\\n")
connection.recv(1)
"""


@dataclass
class LambdaServer:
    """Where functions are made and invoked.

    Attributes:
        proxy: What clients see; it can fail requests.
        folder: Where the functions' logs are.
        used_mb: The memory that the REPORT line says was used.
    """

    proxy: FaultyProxy
    folder: Path
    used_mb: int = 100

    def credentials(self, secret: str = SECRET) -> AwsCredentials:
        """Return credentials for it."""
        return AwsCredentials(
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SecretStr(secret),
            region_name=REGION,
            # An adapter that kept these retries would render twice.
            aws_client_parameters={
                "endpoint_url": self.proxy.url,
                "config": {"retries": {"max_attempts": 3}, "read_timeout": 1},
            },
        )

    def function(
        self,
        name: str,
        code: str | None = None,
        role: Mapping[str, str] | None = None,
        timeout: int = 30,
    ) -> str:
        """Make a function and return its name; one of that name is replaced.

        No request fails any more, whatever a test before has asked for.

        Args:
            name: Its name.
            code: The module with its `handler`; None: that of `deployments/lambda`.
            role: The variables by which its code finds the storage, as AWS gives it its role.
            timeout: Its time limit, in seconds.
        """
        given = {
            "environment": dict(role or {}),
            "log": str(self.folder / f"{name}.log"),
            "socket": str(self.folder / "instances"),
        }
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("bootstrap", BOOTSTRAP)
            archive.writestr("handler.py", HANDLER.read_text() if code is None else code)
            archive.writestr("function.json", json.dumps(given))
        self.proxy.fail()
        client = self.client()
        with suppress(client.exceptions.ResourceNotFoundException):
            client.delete_function(FunctionName=name)
        client.create_function(
            FunctionName=name,
            Runtime="provided.al2023",
            Role="arn:aws:iam::000000000000:role/worker",
            Handler="handler.handler",
            Code={"ZipFile": packed.getvalue()},
            Timeout=timeout,
            MemorySize=MEMORY_MB,
        )
        return name

    def adapter(self, function: str, **options: Any) -> AwsLambdaAdapter:
        """Return an adapter for a function."""
        given = {"credentials": self.credentials(), "timeout": 60.0, "max_in_flight": 4}
        return AwsLambdaAdapter(function_name=function, **(given | options))

    def client(self) -> Any:
        """Return a boto3 client for it."""
        credentials = self.credentials()
        credentials.aws_client_parameters.config = None
        parameters = credentials.aws_client_parameters.get_params_override()
        return credentials.get_boto3_session().client("lambda", **parameters)

    def invocations(self) -> list[dict[str, Any]]:
        """Return the payloads that came since the last `proxy.fail`, without the checks."""
        return [
            json.loads(request.body)
            for request, _ in self.proxy.requests
            if request.header("X-Amz-Invocation-Type") == "RequestResponse"
        ]

    def check_signature(self, request: Request) -> Answer | None:
        """Refuse what is not signed with the secret, as AWS does."""
        words = request.header("Authorization").replace(",", "").split()
        given = dict(word.split("=", 1) for word in words[1:])
        names = given["SignedHeaders"].split(";")
        signed = {name: value for name, value in request.headers if name.lower() in names}
        asked = AWSRequest(
            request.method, self.proxy.url + request.path, headers=signed, data=request.body
        )
        asked.context["timestamp"] = request.header("X-Amz-Date")
        signer = SigV4Auth(Credentials(ACCESS_KEY, SECRET), "lambda", REGION)
        text = signer.string_to_sign(asked, signer.canonical_request(asked))
        if signer.signature(text, asked) == given["Signature"]:
            return None
        return refusal(403, "InvalidSignatureException", "The request signature does not match.")

    def add_log(self, request: Request, answer: Answer, seconds: float) -> Answer:
        """Add the end of the function's log, if the client asked for it."""
        if request.header("X-Amz-Log-Type") != "Tail" or answer.status != 200:
            return answer
        name = unquote(request.path.split("/")[3])
        file = self.folder / f"{name}.log"
        written = file.read_text(errors="replace") if file.exists() else ""
        milliseconds = seconds * 1000
        log = (
            f"START RequestId: 1 Version: $LATEST\n{written.rstrip()}\nEND RequestId: 1\n"
            f"REPORT RequestId: 1\tDuration: {milliseconds:.2f} ms\t"
            f"Billed Duration: {math.ceil(milliseconds)} ms\tMemory Size: {MEMORY_MB} MB\t"
            f"Max Memory Used: {self.used_mb} MB\t\n"
        )
        encoded = base64.b64encode(log.encode()[-4096:]).decode()
        return replace(answer, headers=(*answer.headers, ("X-Amz-Log-Result", encoded)))


def refusal(status: int, code: str, message: str) -> Answer:
    """Return an error of the service, as AWS words it."""
    body = json.dumps({"message": message, "Type": "User"}).encode()
    return Answer(status, body, (("x-amzn-ErrorType", code), ("Content-Type", "application/json")))


@contextmanager
def serving_functions(folder: Path) -> Iterator[LambdaServer]:
    """Run ministack and the functions' instances, each in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if "AWS" not in name} | {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOST": "127.0.0.1",
        "IOT_MTLS_ENABLED": "0",
        "TMPDIR": str(folder),
    }
    runtime = Path(__file__).with_name("lambda_runtime.py")
    log = (folder / "ministack.log").open("w")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=environment, stdout=log, stderr=log, cwd=folder
        ),
        subprocess.Popen(
            [sys.executable, runtime, folder / "instances"], stdout=subprocess.PIPE, text=True
        ),
    ]
    try:
        ready = processes[1].stdout
        assert ready is not None
        assert ready.readline().strip() == "ready"
        wait_for_answer(f"http://127.0.0.1:{port}/_ministack/health")
        with faulty_proxy(f"http://127.0.0.1:{port}") as proxy:
            server = LambdaServer(proxy, folder)
            proxy.gate, proxy.finish = server.check_signature, server.add_log
            yield server
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()


def wait_for_answer(url: str) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 -- our own server
        except OSError:
            assert time.monotonic() < deadline, "it never came up"
            time.sleep(0.1)
        else:
            return
