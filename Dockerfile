# A simple image; torch's wheels bring the CUDA runtime, so a slim Python image with the NVIDIA
# container toolkit on the host is a CUDA container.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# The kernels are compiled with the C++ compiler when the service starts.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --no-install-recommends -y g++ python3-dev \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY constraints.txt ./
COPY client client
COPY service service
RUN pip install --no-cache-dir -c constraints.txt ./client ./service \
 && useradd --create-home --uid 10001 lossd \
 && install -d -o lossd /var/cache/lossd

USER lossd
ENV LOSSD_HOST=0.0.0.0 \
    LOSSD_ALLOW_ANONYMOUS=true \
    LOSSD_CACHE_DIR=/var/cache/lossd \
    OMP_WAIT_POLICY=PASSIVE
VOLUME /var/cache/lossd
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s \
  CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/ready')"]
CMD ["lossd", "serve"]
