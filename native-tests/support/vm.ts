/**
 * A small virtual machine with a true Linux kernel, whose `nbd` client and file systems the native tests and
 * the demo use. Containers and many test machines have no `nbd` module and no right to mount; qemu's own
 * emulation (tcg) runs everywhere and needs about 3 seconds to boot. KVM is left aside on purpose: where it
 * is half there, it fails in ways that look like our own faults.
 *
 *   host (this process)                         guest
 *   Vm.run(script) --- stdin/stdout of qemu --- virtio serial port --- guest-init.sh runs it with sh
 *   servers on 127.0.0.1 ---------------------- seen as 10.0.2.2 (qemu's user network)
 *   console.log <------------------------------ ttyS0: kernel messages
 *
 * Scripts run one after another, each in a shell of its own: no variables or directories carry over, but
 * background processes go on, and the host can do its own work between two scripts. The protocol is
 * described in guest-init.sh.
 *
 * What it does not do: no disk, no other user than root, no clock worth trusting, one script at a time.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { appendFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { killAtExit, tail } from './process.ts';
import { findTool, skipOrFail, type Skippable } from './tools.ts';
import { packRoot, prepareVm, VmUnavailable } from './vm-image.ts';

/** The host's loopback interface as the guest sees it. */
export const HOST_ADDRESS = '10.0.2.2';

const BOOT_LIMIT_MS = 120_000;
const RUN_LIMIT_MS = 120_000;
const POWER_OFF_LIMIT_MS = 30_000;

export interface VmOptions {
  /** Files or directories of the host, by the absolute path at which the guest gets a copy, in memory. */
  readonly files?: Readonly<Record<string, string>>;
  /** TCP ports of the host's loopback interface that lead to ports of the guest. */
  readonly hostForwards?: readonly { readonly host: number; readonly guest: number }[];
  /** Memory in MiB, 512 unless given; files and everything written outside a mount take from it. */
  readonly memoryMib?: number;
  /** Processors, 1 unless given. The kernel's nbd driver uses one connection for each at most. */
  readonly processorCount?: number;
}

export interface ScriptResult {
  readonly status: number;
  /** Standard output and standard error as the script wrote them. */
  readonly output: string;
}

interface Pending {
  readonly id: number;
  readonly resolve: (result: ScriptResult) => void;
  readonly reject: (error: Error) => void;
}

/** A running machine. Whoever starts it ends it, with `powerOff` or `kill`; it ends with this process too. */
export class Vm {
  readonly #directory: string;
  readonly #qemu: ChildProcess;
  readonly #ended: Promise<void>;
  #received: Buffer = Buffer.alloc(0);
  #pending: Pending | undefined;
  #lastId = 0;
  #stderr = '';
  #over = false;

  private constructor(directory: string, qemu: ChildProcess) {
    this.#directory = directory;
    this.#qemu = qemu;
    this.#ended = new Promise((resolve) => {
      qemu.once('close', () => {
        this.#end('The machine stopped');
        resolve();
      });
    });
    qemu.once('error', (error) => this.#end(`qemu did not start: ${error.message}`));
    qemu.stdin?.on('error', () => undefined); // A stopped machine is reported once, by its end.
    qemu.stderr?.setEncoding('utf8').on('data', (text: string) => (this.#stderr += text));
    qemu.stdout?.on('data', (bytes: Buffer) => {
      this.#received = Buffer.concat([this.#received, bytes]);
      this.#takeAnswers();
    });
  }

  /**
   * Boots a machine and waits until it takes scripts.
   *
   * @throws {VmUnavailable} where the machine's image cannot be made here (see vm-image.ts).
   */
  static async start(options: VmOptions = {}): Promise<Vm> {
    const image = await prepareVm();
    const program = findTool('qemu-system-x86_64');
    if (program === undefined) throw new VmUnavailable('missing qemu-system-x86_64');
    const directory = mkdtempSync(join(tmpdir(), 'cowbell-vm-'));
    try {
      const initrd = await initrdWith(image.initrd, options.files ?? {}, directory);
      const qemu = spawn(program, qemuArguments(image.kernel, initrd, directory, options), {
        stdio: ['pipe', 'pipe', 'pipe'],
      });
      killAtExit(qemu);
      const vm = new Vm(directory, qemu);
      await vm.#answer(0, BOOT_LIMIT_MS, 'did not boot');
      return vm;
    } catch (error) {
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  /**
   * Runs a shell script (busybox `sh`) as root and waits for its end, whatever its exit status. A background
   * process that it starts goes on; what that one prints after the script's end is lost.
   *
   * Fails, and stops the machine, when the script takes longer than `timeoutMs` (two minutes unless given).
   */
  async run(script: string, options: { readonly timeoutMs?: number } = {}): Promise<ScriptResult> {
    if (this.#pending !== undefined) throw new Error(`The guest is busy with script ${this.#pending.id}`);
    this.#lastId += 1;
    const answer = this.#answer(this.#lastId, options.timeoutMs ?? RUN_LIMIT_MS, `did not end:\n${script}`);
    this.#send(`run ${this.#lastId} ${Buffer.from(`${script}\n`).toString('base64')}\n`);
    return await answer;
  }

  /** Runs a script that stops at its first failing command and must not fail; returns its output. */
  async must(script: string, options: { readonly timeoutMs?: number } = {}): Promise<string> {
    const { status, output } = await this.run(`set -e\n${script}`, options);
    if (status === 0) return output;
    throw new Error(
      `The guest's script ended with status ${status}\n${script}\n${tail(output)}${this.#trace()}`,
    );
  }

  /** Kernel messages so far. */
  console(): string {
    const log = join(this.#directory, 'console.log');
    return existsSync(log) ? readFileSync(log, 'utf8') : '';
  }

  /** Switches the guest off without unmounting or syncing anything, and waits until it is gone. */
  async powerOff(): Promise<void> {
    if (!this.#over) this.#send('poweroff\n');
    const timer = setTimeout(() => this.#qemu.kill('SIGKILL'), POWER_OFF_LIMIT_MS);
    await this.#ended;
    clearTimeout(timer);
    rmSync(this.#directory, { recursive: true, force: true });
  }

  /** Pulls the plug, at any time and any number of times. */
  async kill(): Promise<void> {
    this.#qemu.kill('SIGKILL');
    await this.#ended;
    rmSync(this.#directory, { recursive: true, force: true });
  }

  #send(line: string): void {
    this.#qemu.stdin?.write(line);
  }

  /** Waits for the answer to one script; number 0 is the guest's `ready`. */
  async #answer(id: number, timeoutMs: number, complaint: string): Promise<ScriptResult> {
    if (this.#over) throw new Error(`The machine has stopped${this.#trace()}`);
    return await new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#end(`The guest ${complaint}\nwithin ${timeoutMs} ms`);
        this.#qemu.kill('SIGKILL');
      }, timeoutMs);
      this.#pending = {
        id,
        resolve: (result) => {
          clearTimeout(timer);
          resolve(result);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      };
    });
  }

  #takeAnswers(): void {
    const lineEnd = this.#received.indexOf('\n');
    if (lineEnd < 0 || this.#pending === undefined) return;
    const line = this.#received.toString('utf8', 0, lineEnd);
    const done = line === 'ready' ? ['', '0', '0', '0'] : /^done (\d+) (\d+) (\d+)$/.exec(line);
    if (done === null || Number(done[1]) !== this.#pending.id) {
      this.#end(`The guest answered ${JSON.stringify(line)} to script ${this.#pending.id}`);
      return;
    }
    const start = lineEnd + 1;
    const end = start + Number(done[3]);
    if (this.#received.length < end) return;
    const output = this.#received.toString('utf8', start, end);
    this.#received = this.#received.subarray(end);
    const { resolve } = this.#pending;
    this.#pending = undefined;
    resolve({ status: Number(done[2]), output });
  }

  #end(reason: string): void {
    this.#over = true;
    const pending = this.#pending;
    this.#pending = undefined;
    pending?.reject(new Error(`${reason}${this.#trace()}`));
  }

  #trace(): string {
    return `\nqemu: ${tail(this.#stderr)}\nconsole: ${tail(this.console())}`;
  }
}

/**
 * Boots a machine that ends with the test. Where there can be none the test is skipped, or failed under
 * `CI=true`, and must return at once.
 */
export async function bootVm(
  t: Skippable & { teardown(end: () => Promise<void>): void },
  options: VmOptions = {},
): Promise<Vm | undefined> {
  try {
    const vm = await Vm.start(options);
    t.teardown(async () => await vm.kill());
    return vm;
  } catch (error) {
    if (!(error instanceof VmUnavailable)) throw error;
    skipOrFail(t, error.message);
    return undefined;
  }
}

function qemuArguments(kernel: string, initrd: string, directory: string, options: VmOptions): string[] {
  const forwards = (options.hostForwards ?? []).map(
    ({ host, guest }) => `,hostfwd=tcp:127.0.0.1:${host}-:${guest}`,
  );
  return [
    ['-nodefaults', '-display', 'none', '-no-reboot'],
    ['-machine', 'pc', '-accel', 'tcg', '-cpu', 'max', '-m', String(options.memoryMib ?? 512)],
    ['-smp', String(options.processorCount ?? 1)],
    ['-kernel', kernel, '-initrd', initrd, '-append', 'console=ttyS0 panic=-1 quiet'],
    ['-serial', `file:${join(directory, 'console.log')}`],
    ['-chardev', 'stdio,id=agent,signal=off'],
    ['-device', 'virtio-serial-pci', '-device', 'virtserialport,chardev=agent,nr=1'],
    ['-netdev', `user,id=n0${forwards.join('')}`, '-device', 'virtio-net-pci,netdev=n0,romfile='],
  ].flat();
}

/** The image's initial file system with more files appended; the image itself where there are none. */
async function initrdWith(
  base: string,
  files: Readonly<Record<string, string>>,
  directory: string,
): Promise<string> {
  if (Object.keys(files).length === 0) return base;
  const root = join(directory, 'files');
  for (const [target, source] of Object.entries(files)) {
    const path = join(root, target);
    mkdirSync(dirname(path), { recursive: true });
    cpSync(source, path, { recursive: true, dereference: true });
  }
  const added = join(directory, 'added');
  await packRoot(root, added);
  const initrd = join(directory, 'initrd');
  cpSync(base, initrd);
  appendFileSync(initrd, readFileSync(added));
  rmSync(root, { recursive: true });
  rmSync(added);
  return initrd;
}
