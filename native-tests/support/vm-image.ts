/**
 * The kernel and the initial file system of the test machine (vm.ts), built once and kept in `.cache/vm/`.
 *
 * The kernel is Debian's own for cloud machines: small, and with `nbd`, virtio and file systems as modules
 * or built in. Its package is downloaded and unpacked here, never installed. The file system holds a static
 * busybox, this machine's `nbd-client` and file system tools with their libraries, and the modules in the
 * order in which the guest loads them. Everything runs from memory: the guest has no disk of its own.
 *
 * An image is a directory named by a hash of all that goes into it from this machine: this file, the init
 * script and the versions of the packages that tools are taken from. It is built beside its place and
 * renamed, so an image that is there is whole, and two test processes may build at the same time. The
 * kernel's version is not part of the name: a finished image works without a network. Remove `.cache/vm`
 * for a newer kernel.
 */
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { must, ROOT } from './process.ts';
import { findTool } from './tools.ts';

/** The paths of a finished image. */
export interface VmImage {
  readonly kernel: string;
  readonly initrd: string;
}

/** The machine cannot be built or run here; the message says what is missing. */
export class VmUnavailable extends Error {
  override readonly name = 'VmUnavailable';
}

const CACHE = join(ROOT, '.cache/vm');
const THIS_FILE = fileURLToPath(import.meta.url);
const INIT_SCRIPT = fileURLToPath(new URL('guest-init.sh', import.meta.url));

/** The package whose one dependency is the current kernel of the Debian release. */
const KERNEL_META_PACKAGE = 'linux-image-cloud-amd64';

/** Tools of this machine that the guest gets, with the packages whose versions name the image. */
const GUEST_TOOLS = ['nbd-client', 'mkfs.ext4', 'e2fsck', 'tune2fs', 'mkfs.xfs', 'xfs_repair'];
const GUEST_TOOL_PACKAGES = ['libc6', 'nbd-client', 'e2fsprogs', 'xfsprogs'];
const GUEST_FILES = ['/etc/mke2fs.conf'];

/** Modules that the guest loads, with their arguments. What they depend on comes before them by itself. */
const GUEST_MODULES = ['virtio_pci', 'virtio_console', 'virtio_net', 'nbd max_part=0', 'ext4', 'xfs'];

/** Tools that building and running need. A shell (bash) and dpkg are always there on Debian. */
const BUILD_TOOLS = ['qemu-system-x86_64', 'apt-get', 'dpkg', 'cpio', 'ldd', ...GUEST_TOOLS];

const DOWNLOAD_LIMIT_MS = 300_000;

/**
 * Builds the image where it is not there yet: about 5 seconds and 28 MB of download.
 *
 * @throws {VmUnavailable} where a tool is missing or the packages cannot be downloaded.
 */
export async function prepareVm(): Promise<VmImage> {
  if (process.arch !== 'x64')
    throw new VmUnavailable(`missing an x64 processor, this one is ${process.arch}`);
  const missing = BUILD_TOOLS.filter((tool) => findTool(tool) === undefined);
  if (missing.length > 0) throw new VmUnavailable(`missing ${missing.join(', ')} for the virtual machine`);
  const directory = join(CACHE, await imageName());
  if (!existsSync(directory)) await build(directory);
  return { kernel: join(directory, 'kernel'), initrd: join(directory, 'initrd') };
}

async function imageName(): Promise<string> {
  const versions = await must('dpkg-query', [
    '--show',
    '--showformat=${Package} ${Version}\n',
    ...GUEST_TOOL_PACKAGES,
  ]);
  const hash = createHash('sha256').update(versions);
  for (const file of [THIS_FILE, INIT_SCRIPT]) hash.update(readFileSync(file));
  return hash.digest('hex').slice(0, 16);
}

async function build(directory: string): Promise<void> {
  mkdirSync(CACHE, { recursive: true });
  const work = mkdtempSync(join(CACHE, 'building-'));
  try {
    const unpacked = join(work, 'unpacked');
    await downloadPackages(work, unpacked);
    const root = join(work, 'root');
    await fillRoot(root, unpacked);
    const image = join(work, 'image');
    mkdirSync(image);
    const kernel = readdirSync(join(unpacked, 'boot')).find((name) => name.startsWith('vmlinuz-'));
    if (kernel === undefined) throw new VmUnavailable('missing a kernel in the downloaded package');
    copyFileSync(join(unpacked, 'boot', kernel), join(image, 'kernel'));
    await packRoot(root, join(image, 'initrd'));
    try {
      renameSync(image, directory);
    } catch (error) {
      if (!existsSync(directory)) throw error; // Otherwise another process has finished the same image.
    }
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/**
 * Downloads the kernel's package and busybox's and unpacks them. Package lists that are missing or out of
 * date are brought up to date once, where we may.
 */
async function downloadPackages(work: string, unpacked: string): Promise<void> {
  try {
    await download(work);
  } catch (first) {
    try {
      await must('apt-get', ['update', '-qq'], { timeoutMs: DOWNLOAD_LIMIT_MS });
      await download(work);
    } catch {
      const reason = first instanceof Error ? first.message : String(first);
      throw new VmUnavailable(`missing the kernel's package for the virtual machine: ${reason}`, {
        cause: first,
      });
    }
  }
  for (const name of readdirSync(work).filter((file) => file.endsWith('.deb'))) {
    await must('dpkg', ['-x', join(work, name), unpacked]);
  }
}

async function download(work: string): Promise<void> {
  const description = await must('apt-cache', ['show', '--no-all-versions', KERNEL_META_PACKAGE]);
  const kernel = /^Depends:.*?\b(linux-image-\S+)/m.exec(description)?.[1];
  if (kernel === undefined) throw new Error(`${KERNEL_META_PACKAGE} depends on no kernel package`);
  // A root user's apt drops its rights for downloads and warns where that user cannot write here.
  const options = ['-qq', '-o', 'APT::Sandbox::User=root'];
  await must('apt-get', [...options, 'download', kernel, 'busybox-static'], {
    cwd: work,
    timeoutMs: DOWNLOAD_LIMIT_MS,
  });
}

async function fillRoot(root: string, unpacked: string): Promise<void> {
  const put = (source: string, target: string): void => {
    const path = join(root, target);
    if (existsSync(path)) return;
    mkdirSync(dirname(path), { recursive: true });
    copyFileSync(source, path);
  };
  put(INIT_SCRIPT, '/init');
  chmodSync(join(root, 'init'), 0o755);
  const busybox = ['bin/busybox', 'usr/bin/busybox'].map((path) => join(unpacked, path)).find(existsSync);
  if (busybox === undefined) throw new VmUnavailable('missing busybox in the downloaded package');
  put(busybox, '/bin/busybox');
  for (const name of GUEST_TOOLS) {
    const tool = findTool(name);
    if (tool === undefined) throw new VmUnavailable(`missing ${name}`);
    put(tool, join('/usr/sbin', name));
    for (const library of await librariesOf(tool)) put(library, library);
  }
  for (const file of GUEST_FILES.filter(existsSync)) put(file, file);
  await putModules(root, unpacked);
}

async function librariesOf(program: string): Promise<string[]> {
  const lines = (await must('ldd', [program])).split('\n');
  return lines.flatMap((line) => /(\/\S+) \(0x/.exec(line)?.[1] ?? []);
}

/** Copies the modules, uncompressed, and writes their order; those built into the kernel are left out. */
async function putModules(root: string, unpacked: string): Promise<void> {
  const base = ['lib/modules', 'usr/lib/modules'].map((path) => join(unpacked, path)).find(existsSync);
  if (base === undefined) throw new VmUnavailable("missing modules in the kernel's package");
  const files = new Map<string, string>();
  for (const file of readdirSync(base, { recursive: true, encoding: 'utf8' })) {
    const name = /([^/]+)\.ko(\.xz)?$/.exec(file)?.[1];
    if (name !== undefined) files.set(name.replaceAll('-', '_'), join(base, file));
  }
  mkdirSync(join(root, 'modules'), { recursive: true });
  const order: string[] = [];
  const placed = new Set<string>();
  const place = async (name: string, parameters: string): Promise<void> => {
    const file = files.get(name);
    if (placed.has(name) || file === undefined) return;
    placed.add(name);
    const target = join(root, 'modules', `${name}.ko`);
    if (file.endsWith('.xz')) await must('bash', ['-c', 'xz -dc "$1" >"$2"', basename(file), file, target]);
    else copyFileSync(file, target);
    for (const needed of dependenciesOf(target)) await place(needed, '');
    order.push(`${name} ${parameters}`.trim());
  };
  for (const entry of GUEST_MODULES) {
    const [name = '', ...parameters] = entry.split(' ');
    await place(name, parameters.join(' '));
  }
  writeFileSync(join(root, 'modules/order'), order.map((line) => `${line}\n`).join(''));
}

/** A module names what it needs in its own `.modinfo` section, as zero-terminated `key=value` text. */
function dependenciesOf(module: string): string[] {
  const names = /\0depends=([^\0]*)\0/.exec(readFileSync(module, 'latin1'))?.[1] ?? '';
  return names
    .split(',')
    .filter((name) => name !== '')
    .map((name) => name.replaceAll('-', '_'));
}

/** Packs a directory tree as an initial file system; the kernel unpacks several in one file in turn. */
export async function packRoot(root: string, target: string): Promise<void> {
  const pack = 'set -o pipefail; cd "$1" && find . -print0 | cpio -0 -o -H newc -R 0:0 --quiet >"$2"';
  await must('bash', ['-c', pack, 'pack', root, target]);
}
