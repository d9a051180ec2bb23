"""Gets the packages of npm and Debian that some data sets come in, and reads the files in them."""

import io
import lzma
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from finetune.core.errors import FileError
from finetune.core.files import fingerprint_file

MOST_BYTES = 1024**3
"""Most bytes of the wanted files of a Debian package: a damaged one may unpack to any size, and memory holds them."""


@dataclass(frozen=True)
class NpmPackage:
    """A version of an npm package, known by the hash of its file.

    Args:
        name: Its name in the registry, such as `@scope/name`.
        version: Its version.
        sha256: SHA-256 of its `.tgz` in hexadecimal.
        option: The script's option that names the file, such as `--google-tgz`.
    """

    name: str
    version: str
    sha256: str
    option: str

    @property
    def file_name(self) -> str:
        """The name under which `npm pack` writes it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    def get(self, given: Path | None, folder: Path) -> Path:
        """Returns the package's file after checking its SHA-256.

        Args:
            given: The file that the option named, None to get it with `npm pack`.
            folder: Where `npm pack` writes.

        Raises:
            FileError: If there is no such file, it is another one, or `npm pack` fails.
        """
        path = given or self._pack(folder)
        if not path.is_file():
            raise FileError(f"Expected {self.option} to be a file, but got {path}. Check the path.")
        if (found := fingerprint_file(path)) != self.sha256:
            raise FileError(
                f"Expected {path} to be {self.name} {self.version} with SHA-256 {self.sha256}, but got {found}. "
                f"Get it again with: npm pack {self.name}@{self.version}"
            )
        return path

    def _pack(self, folder: Path) -> Path:
        path = folder / self.file_name
        npm = shutil.which("npm")
        if npm is None:
            raise FileError(
                f"Expected npm to be on the PATH, but it is not. Install Node.js, or get {self.name} {self.version} "
                f"from the npm registry on another machine and pass {self.option} FILE."
            )
        print(f"Getting {self.name} {self.version} with npm pack ...", flush=True)
        command = [npm, "pack", f"{self.name}@{self.version}", "--ignore-scripts"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode or not path.is_file():
            raise FileError(
                f"Expected npm pack to write {path.name}, but it did not: {result.stderr.strip()[-500:]}\n"
                f"Check the connection to the npm registry, or pass {self.option} FILE."
            )
        return path


def read_npm(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the files of an npm package: the path below its first folder, and the content. Links are passed over.

    Args:
        path: The package's `.tgz`.
    """
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None  # a link may lead anywhere
            if file is not None:
                yield member.name.partition("/")[2], file.read()


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Names the file of a package whose content stops what runs inside.

    Args:
        name: The file's path in the package.

    Raises:
        FileError: In the place of whatever is raised inside: decoders raise all kinds of errors.
    """
    try:
        yield
    except Exception as error:
        raise FileError(
            f"Expected {name} of the package to be whole, but reading it failed: {error}. Get the package again."
        ) from error


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package.

    Args:
        name: Its name in the archive.
        file_name: The name of the file that was tried, which an error tells.
        installed: The folder of its files that are wanted, on a machine where it is installed.
        option: The script's option that names this folder elsewhere, such as `--stamps`.
    """

    name: str
    file_name: str
    installed: Path
    option: str

    def find(
        self, folder: Path | None, deb: Path | None, is_wanted: Callable[[PurePosixPath], bool]
    ) -> dict[str, bytes]:
        """Reads files from what the options name, else from the installed copy, else from a download.

        Args:
            folder: What `option` named, None for nothing.
            deb: What `--deb` named, None for nothing.
            is_wanted: As for `read`.

        Raises:
            FileError: As for `read`, `read_folder` and `download`.
        """
        if folder is None and deb is None and self.installed.is_dir():
            folder = self.installed
        if folder is not None:
            return self.read_folder(folder, is_wanted)
        with tempfile.TemporaryDirectory() as download:
            return self.read(deb or self.download(Path(download)), is_wanted)

    def download(self, folder: Path) -> Path:
        """Downloads it with `apt-get download`, which needs no root and installs nothing.

        Args:
            folder: Where it is written.

        Raises:
            FileError: If there is no apt-get, or it fails.
        """
        repair = (
            f"Install it (apt install {self.name}), or get {self.file_name} from the Debian archive "
            f"on another machine and pass --deb FILE."
        )
        apt = shutil.which("apt-get")
        if apt is None:
            raise FileError(f"Expected {self.installed} or apt-get to be there, but got neither. {repair}")
        print(f"Getting {self.name} with apt-get download ...", flush=True)
        result = subprocess.run([apt, "download", self.name], cwd=folder, capture_output=True, text=True, check=False)
        packages = list(folder.glob("*.deb"))
        if result.returncode or not packages:
            raise FileError(
                f"Expected apt-get to download {self.name}, but got: {result.stderr.strip()[-500:]}\n"
                f"Run apt-get update. {repair}"
            )
        return packages[0]

    def read(self, path: Path, is_wanted: Callable[[PurePosixPath], bool]) -> dict[str, bytes]:
        """Reads files of a package by their path below `installed`; links are passed over.

        Args:
            path: The package's `.deb`.
            is_wanted: Whether to read the file with this path below `installed`.

        Raises:
            FileError: If the package is damaged, compressed otherwise than with xz, or the files exceed `MOST_BYTES`.
        """
        root = PurePosixPath(*self.installed.parts[1:])
        files, size = {}, 0
        try:
            with tarfile.open(fileobj=self._open_data(path), mode="r|xz") as archive:
                for member in archive:
                    name = PurePosixPath(member.name)
                    if ".." in name.parts or not name.is_relative_to(root) or not is_wanted(name.relative_to(root)):
                        continue
                    file = archive.extractfile(member) if member.isfile() else None  # a link may lead anywhere
                    if file is None:
                        continue
                    size += member.size
                    if size > MOST_BYTES:
                        raise FileError(
                            f"Expected the files wanted of {path} to have at most {MOST_BYTES} bytes, but got more. "
                            "Get it again from the Debian archive."
                        )
                    files[str(name.relative_to(root))] = file.read()
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            raise FileError(f"Expected {path} to be whole, but reading it failed: {error}. Get it again.") from error
        return files

    def _open_data(self, path: Path) -> io.BytesIO:
        """Opens the xz-compressed tar with the package's files: the `data.tar.xz` of its ar archive."""
        if not path.is_file():
            raise FileError(f"Expected --deb to be a file, but got {path}. Check the path.")
        with path.open("rb") as file:
            if file.read(8) != b"!<arch>\n":
                raise FileError(f"Expected {path} to be a Debian package, but it is not. Get it again.")
            names = []
            while len(header := file.read(60)) == 60:
                names.append(header[:16].decode("ascii", "replace").strip().rstrip("/"))
                length = header[48:58].strip()
                if not length.isdigit():
                    raise FileError(f"Expected {path} to be whole, but a header in it is damaged. Get it again.")
                size = int(length)
                if names[-1] == "data.tar.xz":
                    if len(data := file.read(size)) < size:
                        raise FileError(f"Expected {path} to be whole, but its end is missing. Get it again.")
                    return io.BytesIO(data)
                file.seek(size + size % 2, io.SEEK_CUR)
        raise FileError(
            f"Expected {path} to hold data.tar.xz, but it holds {', '.join(names)}. "
            f"Unpack it (dpkg-deb -x {path.name} DIR) and pass {self.option} DIR{self.installed}."
        )

    def read_folder(self, folder: Path, is_wanted: Callable[[PurePosixPath], bool]) -> dict[str, bytes]:
        """Reads files of an unpacked package, as `read` does.

        Args:
            folder: The folder `installed`, wherever it lies.
            is_wanted: As for `read`.

        Raises:
            FileError: If there is no such folder.
        """
        if not folder.is_dir():
            raise FileError(f"Expected {self.option} to be a folder, but got {folder}. Check the path.")
        names = {path: PurePosixPath(path.relative_to(folder).as_posix()) for path in folder.rglob("*")}
        return {
            str(name): path.read_bytes() for path, name in sorted(names.items()) if is_wanted(name) and path.is_file()
        }
