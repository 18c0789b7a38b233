# syntax=docker/dockerfile:1
# `argus serve --http` on the CPU: docs/serving.md says how to run it.

FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY constraints.txt .
# torch changes rarely: its layer stays when the sources change.
RUN python -m venv /opt/argus \
    && /opt/argus/bin/pip install --no-cache-dir uv \
    && /opt/argus/bin/uv pip install --no-cache --python /opt/argus/bin/python --torch-backend=cpu \
        "$(grep '^torch==' constraints.txt)" \
    && /opt/argus/bin/pip install --no-cache-dir -c constraints.txt setuptools wheel ninja pybind11
COPY . .
RUN /opt/argus/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels . \
    && /opt/argus/bin/pip install --no-cache-dir -c constraints.txt "$(ls /wheels/*.whl)[serve]" \
    && /opt/argus/bin/pip uninstall --yes uv ninja pybind11

FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home argus \
    && mkdir /sessions && chown argus /sessions
COPY --from=build /opt/argus /opt/argus
ENV PATH=/opt/argus/bin:$PATH PYTHONUNBUFFERED=1
USER argus
# The sessions; the export is mounted read-only at /export.
VOLUME /sessions
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["argus", "serve", "/export", "--state", "/sessions", "--http", "--host", "0.0.0.0", "--port", "8000"]
