"""The job behind each peer, run by the peer's own environment, which may lack lossd."""
