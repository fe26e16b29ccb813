//! Starts the engines and builds the images, without a registry: krunner's with its Dockerfile, a session's as `dist/README.md`
//! says, on top of busybox.
//!
//! The Dockerfile's `debian:trixie-slim` is an image with this machine's `setcap`; its `apt-get` does nothing, because there is no
//! network.

use std::fs;
use std::time::Instant;

use krunner_tests::node_vm::NodeEvent;

use crate::command::{command, output, write};
use crate::emit;

/// A session's image; the recipes call it so.
pub(crate) const SESSION: &str = "example/image-with-krunner:1.0";

const SAVED: &str = "/opt/node/images.tar";

const BASE: &str = "
mkdir -p base/bin base/home/work/.logs base/home/config base/tmp base/opt/kernel base/etc base/proc base/sys base/dev
cp /bin/busybox victim base/bin
printf 'root:x:0:0::/root:/bin/sh\\nwork:x:1000:1000::/home/work:/bin/sh\\n' > base/etc/passwd
chroot base /bin/busybox --install -s /bin
cp agent/entrypoint.sh agent/su-exec base/opt/kernel
mkdir -p base/lib
cp -L /lib/ld-musl-x86_64.so.1 base/lib
chmod 1777 base/tmp
chown -R 1000:1000 base/home/work
tar -C base -c . | docker import --change 'ENV PATH=/opt/kernel:/bin' - localhost/base:1
tar -C base -c . | docker import --change 'ENTRYPOINT [\"/bin/sleep\", \"1000000\"]' - localhost/pause:1
";

const DEBIAN: &str = "
mkdir -p debian/bin debian/usr/bin debian/tmp
cp /bin/busybox debian/bin/sh
printf '#!/bin/sh\\n' > debian/usr/bin/apt-get
chmod +x debian/usr/bin/apt-get
for file in $(ldd /sbin/setcap | grep -o '/[^ ]*') /sbin/setcap; do
    mkdir -p debian$(dirname $file)
    cp -L $file debian$file
done
tar -C debian -c . | docker import --change 'ENV PATH=/sbin:/bin:/usr/bin' - debian:trixie-slim
";

const KRUNNER: &str = "DOCKER_BUILDKIT=1 docker build --quiet --file Dockerfile --tag krunner:0.1.0 dist";

const BUILT: &str = "
mkdir -p empty
DOCKER_BUILDKIT=1 docker build --quiet --tag example/image-with-krunner:1.0 --file - empty << END
FROM localhost/base:1
COPY --from=krunner:0.1.0 /opt/kernel/krunner /opt/kernel/krunner
END
docker save --output images.tar krunner:0.1.0 example/image-with-krunner:1.0 localhost/pause:1
chmod 644 images.tar
";

/// Pods have an address, as with any network plugin.
const NETWORK: &str = r#"{"cniVersion":"0.4.0","name":"pods","plugins":[
    {"type":"ptp","ipam":{"type":"host-local","subnet":"10.88.9.0/24"}}]}"#;

/// Starts Docker and containerd and makes the images known to every engine.
pub(crate) fn prepare() -> Result<(), String> {
    fs::create_dir_all("/etc/cni/net.d").map_err(|error| error.to_string())?;
    write("/etc/cni/net.d/10-pods.conflist", NETWORK)?;
    timed("dockerd", || shell("systemctl start docker"))?;
    timed("base images", || shell(BASE).and_then(|()| shell(DEBIAN)))?;
    timed("image of the Dockerfile", || shell(KRUNNER))?;
    timed("image of a session", || shell(BUILT))?;
    timed("images in containerd", || run(&["ctr", "--namespace", "k8s.io", "images", "import", SAVED]))?;
    timed("images in podman", || run(&["podman", "load", "--quiet", "--input", SAVED]))
}

/// Makes the images known to the user's podman.
pub(crate) fn prepare_rootless(podman: &[&str]) -> Result<(), String> {
    timed("images in rootless podman", || run(&[podman, &["load", "--quiet", "--input", SAVED]].concat()))
}

/// Restarts Docker with a user namespace for every container. It has a store of its own then.
pub(crate) fn remap() -> Result<(), String> {
    write("/etc/docker/daemon.json", r#"{ "userns-remap": "default" }"#)?;
    timed("dockerd with userns-remap", || shell("systemctl restart docker"))?;
    timed("images in it", || run(&["docker", "load", "--quiet", "--input", SAVED]))
}

/// Adds swap to the machine.
pub(crate) fn swap() -> Result<(), String> {
    const MAKE: &str =
        "dd if=/dev/zero of=/swap bs=1M count=256 status=none; chmod 600 /swap; mkswap --quiet /swap; swapon /swap";
    timed("swap", || shell(MAKE))
}

/// Takes it away again.
pub(crate) fn no_swap() -> Result<(), String> {
    shell("swapoff --all")
}

fn run(words: &[&str]) -> Result<(), String> {
    output(&mut command(words)).map(drop)
}

fn shell(script: &str) -> Result<(), String> {
    run(&["/bin/sh", "-ec", script])
}

fn timed(what: &str, work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let began = Instant::now();
    work().map_err(|error| format!("{what}: {error}"))?;
    emit(&NodeEvent::Prepared { what: what.to_owned(), seconds: began.elapsed().as_secs_f64() });
    Ok(())
}
