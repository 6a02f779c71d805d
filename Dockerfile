# A head in a container: docker run -p 8265:8265 noded
# The object store is a memfd, so the size of /dev/shm (--shm-size) does not matter; the container's memory limit does.
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 noded
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY noded ./noded
RUN pip install --no-cache-dir . && rm -rf /src/*

USER noded
WORKDIR /home/noded

# The token and the cluster's durable state; mount a volume here to keep them.
ENV NODED_HOME=/home/noded/.noded
EXPOSE 8265
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import os, ssl, urllib.request as r; t = os.environ.get('NODED_TLS_CERT'); \
r.urlopen(('https' if t else 'http') + '://127.0.0.1:8265/healthz', timeout=4, context=ssl._create_unverified_context() if t else None)"]

ENTRYPOINT ["noded"]
# 0.0.0.0 is the container's own network; publish the port only where clients with the token may reach it.
CMD ["--head", "--host", "0.0.0.0"]
