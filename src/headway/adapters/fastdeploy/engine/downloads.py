"""Features of images and videos, fetched by FastDeploy's own code before a request is scheduled."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fastdeploy.engine.sched.resource_manager_v1 import ResourceManagerV1

FEATURES = ("video_feature_urls", "image_feature_urls", "audio_feature_urls")
NUM_THREADS = 4

_OF_FASTDEPLOY = vars(ResourceManagerV1)


class Downloads:
    """Runs FastDeploy's downloader. It writes to the request: the features, or `error_message` and `error_code`."""

    _has_features_info = _OF_FASTDEPLOY["_has_features_info"]
    _download_features = _OF_FASTDEPLOY["_download_features"]

    def __init__(self) -> None:
        self.bos_client = None  # the downloader makes it
        self._pool = ThreadPoolExecutor(max_workers=NUM_THREADS)

    @staticmethod
    def are_needed(request: Any) -> bool:
        """Whether a request names features to fetch."""
        inputs = request.multimodal_inputs or {}
        return any(inputs.get(name) for name in FEATURES)

    def start(self, request: Any) -> Future[None]:
        """Fetch the features of a request. Any thread."""
        return self._pool.submit(self._download_features, request)
