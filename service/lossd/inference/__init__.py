"""The Open Inference Protocol by gRPC, in front of the same application; needs `lossd[grpc]`."""
