"""A client of Kubernetes' container runtime interface: what kubelet and crictl do, as far as tests need it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from harness import cri_pb2 as cri
from harness.waiting import until

_CALL_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class ExecResult:
    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Pod:
    id: str
    config: cri.PodSandboxConfig


class CriClient:
    """Calls raise ``grpc.RpcError`` with containerd's own text."""

    def __init__(self, socket: Path, logs: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{socket}", options=(("grpc.max_receive_message_length", 16 << 20),)
        )
        self._logs = logs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    # ---------------------------------------------------------------------------------------- images

    def pull(self, image: str, *, username: str = "", password: str = "") -> str:
        """Pull and unpack, as kubelet does; returns the image's id (the config's digest)."""
        request = cri.PullImageRequest(
            image=cri.ImageSpec(image=image), auth=cri.AuthConfig(username=username, password=password)
        )
        return str(self._image("PullImage", request, cri.PullImageResponse).image_ref)

    def images(self) -> list[cri.Image]:
        return list(self._image("ListImages", cri.ListImagesRequest(), cri.ListImagesResponse).images)

    def remove_image(self, image: str) -> None:
        self._image("RemoveImage", cri.RemoveImageRequest(image=cri.ImageSpec(image=image)), cri.RemoveImageResponse)

    def image_file_systems(self) -> list[str]:
        """The mount points that kubelet watches for image garbage collection."""
        answer = self._image("ImageFsInfo", cri.ImageFsInfoRequest(), cri.ImageFsInfoResponse)
        return [usage.fs_id.mountpoint for usage in answer.image_filesystems]

    # ---------------------------------------------------------------------------------- pods, containers

    def run_pod(self, name: str = "pod") -> Pod:
        """A sandbox in the host's network, so that no CNI is needed."""
        unique = f"{name}-{uuid.uuid4().hex[:8]}"
        options = cri.NamespaceOption(network=cri.NODE, pid=cri.POD, ipc=cri.NODE)
        config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=unique, uid=unique, namespace="default"),
            log_directory=str(self._logs / unique),
            linux=cri.LinuxPodSandboxConfig(
                security_context=cri.LinuxSandboxSecurityContext(namespace_options=options)
            ),
        )
        answer = self._runtime("RunPodSandbox", cri.RunPodSandboxRequest(config=config), cri.RunPodSandboxResponse)
        return Pod(answer.pod_sandbox_id, config)

    def create(
        self,
        pod: Pod,
        image: str,
        command: Sequence[str] = (),
        *,
        args: Sequence[str] = (),
        name: str = "main",
        env: Mapping[str, str] | None = None,
        username: str = "",
        readonly: bool = False,
        mounts: Sequence[tuple[Path, str]] = (),
    ) -> str:
        """A container that is not started yet; returns its id. ``mounts``: host path, container path."""
        security = cri.LinuxContainerSecurityContext(run_as_username=username, readonly_rootfs=readonly)
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=image),
            command=command,
            args=args,
            envs=[cri.KeyValue(key=key, value=value) for key, value in (env or {}).items()],
            mounts=[cri.Mount(host_path=str(host), container_path=inside) for host, inside in mounts],
            log_path=f"{name}.log",
            linux=cri.LinuxContainerConfig(security_context=security),
        )
        request = cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        return str(self._runtime("CreateContainer", request, cri.CreateContainerResponse).container_id)

    def start(self, container: str) -> None:
        self._runtime("StartContainer", cri.StartContainerRequest(container_id=container), cri.StartContainerResponse)

    def run_container(self, pod: Pod, image: str, command: Sequence[str] = (), **options: Any) -> str:
        container = self.create(pod, image, command, **options)
        self.start(container)
        return container

    def status(self, container: str) -> cri.ContainerStatus:
        request = cri.ContainerStatusRequest(container_id=container)
        return self._runtime("ContainerStatus", request, cri.ContainerStatusResponse).status

    def is_running(self, container: str) -> bool:
        return self.status(container).state == cri.CONTAINER_RUNNING

    def wait_exit(self, container: str, *, seconds: float = 120.0) -> int:
        """The exit code."""
        until(
            lambda: self.status(container).state == cri.CONTAINER_EXITED, f"exit of {container[:12]}", seconds=seconds
        )
        return int(self.status(container).exit_code)

    def log(self, pod: Pod, name: str = "main") -> str:
        """What the container wrote, without CRI's prefix on each line."""
        path = Path(pod.config.log_directory) / f"{name}.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "\n".join(line.split(" ", 3)[3] for line in lines if line.count(" ") >= 3)

    def exec(self, container: str, command: Sequence[str], *, seconds: int = 120) -> ExecResult:
        request = cri.ExecSyncRequest(container_id=container, cmd=command, timeout=seconds)
        answer = self._runtime("ExecSync", request, cri.ExecSyncResponse)
        return ExecResult(
            answer.exit_code, answer.stdout.decode(errors="replace"), answer.stderr.decode(errors="replace")
        )

    def writable_bytes(self, container: str) -> int:
        """The size of the writable layer, as containerd last measured it."""
        request = cri.ContainerStatsRequest(container_id=container)
        answer = self._runtime("ContainerStats", request, cri.ContainerStatsResponse)
        return int(answer.stats.writable_layer.used_bytes.value)

    def remove_container(self, container: str) -> None:
        self._runtime(
            "StopContainer", cri.StopContainerRequest(container_id=container, timeout=2), cri.StopContainerResponse
        )
        self._runtime(
            "RemoveContainer", cri.RemoveContainerRequest(container_id=container), cri.RemoveContainerResponse
        )

    def remove_pod(self, pod: Pod | str) -> None:
        """Stop and remove a pod with all its containers."""
        identity = pod.id if isinstance(pod, Pod) else pod
        self._runtime("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=identity), cri.StopPodSandboxResponse)
        self._runtime(
            "RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=identity), cri.RemovePodSandboxResponse
        )

    def remove_all_pods(self) -> None:
        pods = self._runtime("ListPodSandbox", cri.ListPodSandboxRequest(), cri.ListPodSandboxResponse).items
        for pod in pods:
            self.remove_pod(pod.id)

    def version(self) -> str:
        return str(self._runtime("Version", cri.VersionRequest(), cri.VersionResponse).runtime_version)

    def _image(self, method: str, request: Any, answer: Any) -> Any:
        return self._call("ImageService", method, request, answer)

    def _runtime(self, method: str, request: Any, answer: Any) -> Any:
        return self._call("RuntimeService", method, request, answer)

    def _call(self, service: str, method: str, request: Any, answer: Any) -> Any:
        call = self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=_CALL_SECONDS, wait_for_ready=True)
