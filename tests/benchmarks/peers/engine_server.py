"""The engine behind HTTP, with the libraries that LitServe is made of."""

import asyncio
from contextlib import closing

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from hrm.checkpoint import load_checkpoint
from hrm.inference.config import Inference
from schemas import HRMExample
from tests.benchmarks.peers.serving import Options


def main() -> None:
    options = Options.parse()
    inference = Inference(slots=options.slots, halting=options.halting, threads=options.threads)
    with closing(inference.open(load_checkpoint(options.checkpoint), "cpu")) as engine:

        async def predict(request: Request) -> JSONResponse:
            example = HRMExample.model_validate(await request.json())
            prediction = await asyncio.wrap_future(engine.submit(example))
            return JSONResponse({"tokens": prediction.tokens})

        app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
        uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
