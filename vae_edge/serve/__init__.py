"""Bundles behind the Open Inference Protocol (KServe v2), in MLServer; see SERVING.md.

Only `vae-edge serve` imports what needs MLServer: `runtime`, `rest`, `page_routes`, `grpc_calls`, `metrics` and
`server`.
"""
