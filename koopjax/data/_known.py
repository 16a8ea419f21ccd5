"""What is known beforehand about the sets that koopjax names: digests, classes, addresses."""

import dataclasses

_DIGITS = tuple("0123456789")


@dataclasses.dataclass(frozen=True)
class Known:
    """A set whose bytes are published.

    Args:
        digests: role -> SHA-256 of the raw (unpacked) idx file.
        class_names: one a class.
        system_folder: where Debian's package puts it, or None.
        package: the Debian package that puts it there, or None.
    """

    digests: dict[str, str]
    class_names: tuple[str, ...]
    system_folder: str | None
    package: str | None


KNOWN = {
    "mnist": Known(
        digests={
            "x_train": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "y_train": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "x_test": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "y_test": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        class_names=_DIGITS,
        system_folder=None,
        package=None,
    ),
    "fashion_mnist": Known(
        digests={
            "x_train": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "y_train": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "x_test": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "y_test": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        system_folder="/usr/share/datasets/fashion-mnist",
        package="dataset-fashion-mnist",
    ),
}


def owner_of(label_digest: str) -> str | None:
    """The known set whose training labels have this digest: tells MNIST from its look-alikes."""
    for name, known in KNOWN.items():
        if known.digests["y_train"] == label_digest:
            return name
    return None
