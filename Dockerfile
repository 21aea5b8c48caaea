# The service. torch's wheels bring the CUDA runtime, so a slim Python image with the NVIDIA container
# toolkit on the host is a CUDA container.
#
#   docker build -t lossd:cuda .
#   docker build -t lossd:cpu --build-arg TORCH=cpu --build-arg WARM=cpu .
ARG BASE=python:3.11-slim-bookworm

# -- what others wrote: changes when a pin changes -------------------------------------------------
FROM ${BASE} AS dependencies
# cuda or cpu: which build of torch
ARG TORCH=cuda
# Where pip looks besides its index; the CPU build of torch is elsewhere.
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
RUN python3 -m venv /opt/lossd
ENV PATH=/opt/lossd/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY requirements/torch-${TORCH}.txt requirements/
RUN pip install --require-hashes --no-deps -r requirements/torch-${TORCH}.txt
COPY requirements/service.txt requirements/
RUN pip install --require-hashes --no-deps -r requirements/service.txt

# The same without what only its authors run: 250 MB of tests, torch's test programs, the installer.
FROM dependencies AS trimmed
RUN packages="$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
 && find "$packages" -type d \( -name tests -o -name test \) -prune -exec rm -r {} + \
 && find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete \
 && pip uninstall --yes pip

# -- what we wrote ---------------------------------------------------------------------------------
FROM dependencies AS ours
COPY requirements/build.txt requirements/
RUN pip install --require-hashes --no-deps -r requirements/build.txt
COPY client client
COPY service service
# In a folder of its own: the layer that an upgrade has to fetch is then less than a megabyte.
RUN pip install --no-index --no-deps --no-build-isolation --prefix /opt/ours ./client ./service

# -- what runs -------------------------------------------------------------------------------------
FROM ${BASE} AS service
# The kernels are compiled on the machine that runs them. A base whose Python came without its
# headers (Debian's own) gets them, too.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --no-install-recommends -y g++ \
 && headers="$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
 && { [ -f "$headers/Python.h" ] || apt-get install --no-install-recommends -y libpython3-dev; } \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --no-create-home --home-dir /tmp --uid 10001 lossd \
 && install -d -o lossd -g lossd /var/cache/lossd /var/cache/lossd/tmp /opt/lossd-kernels
COPY --from=trimmed /opt/lossd /opt/lossd
COPY --from=ours /opt/ours /opt/lossd

# Numbers, so that a cluster can see that it is not root.
USER 10001:10001
ENV PATH=/opt/lossd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LOSSD_HOST=0.0.0.0 \
    LOSSD_PORT=8000 \
    LOSSD_CACHE_DIR=/var/cache/lossd \
    LOSSD_CACHE_SEED_DIR=/opt/lossd-kernels \
    TMPDIR=/var/cache/lossd/tmp \
    OMP_WAIT_POLICY=PASSIVE

# none or cpu: kernels compiled here serve machines with the very processor of this one; every other
# compiles its own into the volume. Compiled in the place where they are read, as their keys hold it.
# The compiler's precompiled header, 141 MiB, is made at the first start and stays in the volume.
ARG WARM=none
RUN if [ "$WARM" != none ]; then \
      lossd warmup --device "$WARM" \
      && rm -r /var/cache/lossd/tmp/* \
      && find /var/cache/lossd -mindepth 1 -maxdepth 1 ! -name tmp -exec mv {} /opt/lossd-kernels/ \;; \
    fi

VOLUME /var/cache/lossd
EXPOSE 8000
STOPSIGNAL SIGTERM
# A first start compiles for minutes; failures before its end do not count.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
  CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['LOSSD_PORT'] + '/health/ready', timeout=4)"]
ENTRYPOINT ["lossd"]
CMD ["serve"]

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lossd" \
      org.opencontainers.image.description="A loss daemon: losses, gradients and maps of segmentation masks" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
