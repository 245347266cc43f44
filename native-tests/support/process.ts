/**
 * Processes for native tests and the demo: run a command to its end, or keep one running, wait for a line
 * that it prints, and stop it by its handle.
 *
 * Every process started here is killed when the test process exits, so that a failed test leaves no
 * server behind. Nothing is killed by name. Waiting is always for an event (a line, an exit) under a time
 * limit, never for an amount of time.
 *
 * tap puts a `NODE_OPTIONS` of its own into the environment of every child, even where it is left out.
 * `cowbell` must run as a user runs it, so it is started through `env -u`, which becomes `cowbell` and keeps
 * the process id.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { createServer, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The repository's root, with a slash at its end. */
export const ROOT = fileURLToPath(new URL('../../', import.meta.url));

const COWBELL = ['-u', 'NODE_OPTIONS', process.execPath, join(ROOT, 'bin/cowbell.cjs')];
const RUN_LIMIT_MS = 60_000;
const STOP_LIMIT_MS = 20_000;

export interface ProcessOptions {
  readonly cwd?: string;
  /** Added to the environment. */
  readonly env?: Readonly<Record<string, string>>;
  /** After this time the process is killed and the call fails. */
  readonly timeoutMs?: number;
  /** Given as standard input, which is empty otherwise. */
  readonly input?: string | Buffer;
}

export interface Finished {
  /** Exit status, or null where a signal ended the process. */
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

const running = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** Registers `child` to be killed when this process exits. */
export function killAtExit(child: ChildProcess): void {
  running.add(child);
  child.once('exit', () => running.delete(child));
}

/** A process that goes on while the test does other things. */
export class Running {
  readonly child: ChildProcess;
  /** What the process was started as, for messages. */
  readonly title: string;
  #stdout = '';
  #stderr = '';
  #end: Finished | undefined;
  #failure: Error | undefined;
  readonly #changed = new Set<() => void>();

  /** Starts `command`; a command that cannot be started fails the first call that waits for it. */
  constructor(command: string, args: readonly string[], options: ProcessOptions = {}) {
    this.title = [command, ...args].join(' ');
    this.child = spawn(command, args, {
      cwd: options.cwd,
      env: { ...process.env, ...options.env },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    killAtExit(this.child);
    // A test that fails and forgets this process must still end; whoever waits for it holds a timer.
    this.child.unref();
    for (const pipe of this.child.stdio) if (pipe instanceof Socket) pipe.unref();
    this.child.stdin?.on('error', () => undefined); // A process may end without reading its input.
    this.child.stdin?.end(options.input);
    this.child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#stdout += text;
      this.#notify();
    });
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text;
      this.#notify();
    });
    this.child.once('error', (error) => {
      this.#failure = error;
      this.#notify();
    });
    this.child.once('close', (status, signal) => {
      this.#end = { status, signal, stdout: this.#stdout, stderr: this.#stderr };
      this.#notify();
    });
  }

  get stdout(): string {
    return this.#stdout;
  }

  get stderr(): string {
    return this.#stderr;
  }

  get ended(): Finished | undefined {
    return this.#end;
  }

  /**
   * Waits for a whole line of standard output that matches, earlier lines included, and returns it without
   * its line end. Fails when the process ends first or the time is over.
   */
  async waitForLine(pattern: RegExp, timeoutMs: number = RUN_LIMIT_MS): Promise<string> {
    const line = await this.#until(
      () => {
        const complete = this.#stdout.split('\n').slice(0, -1);
        const found = complete.find((candidate) => pattern.test(candidate));
        if (found === undefined && this.#end !== undefined) throw this.#error('ended without the line');
        return found;
      },
      timeoutMs,
      `did not print ${pattern}`,
    );
    return line;
  }

  /** Waits for the end of the process and of its output. */
  async wait(timeoutMs: number = RUN_LIMIT_MS): Promise<Finished> {
    return await this.#until(() => this.#end, timeoutMs, 'did not end');
  }

  /** Sends a signal and waits for the end; a process that does not heed it is killed and the call fails. */
  async stop(signal: NodeJS.Signals = 'SIGTERM', timeoutMs: number = STOP_LIMIT_MS): Promise<Finished> {
    if (this.#end === undefined) this.child.kill(signal);
    try {
      return await this.wait(timeoutMs);
    } catch (error) {
      this.child.kill('SIGKILL');
      throw error;
    }
  }

  async #until<T>(probe: () => T | undefined, timeoutMs: number, complaint: string): Promise<T> {
    return await new Promise((resolve, reject) => {
      const finish = (settle: () => void): void => {
        clearTimeout(timer);
        this.#changed.delete(check);
        settle();
      };
      const check = (): void => {
        try {
          if (this.#failure !== undefined) throw this.#failure;
          const value = probe();
          if (value !== undefined) finish(() => resolve(value));
        } catch (error) {
          finish(() => reject(error));
        }
      };
      const timer = setTimeout(() => {
        finish(() => reject(this.#error(`${complaint} within ${timeoutMs} ms`)));
      }, timeoutMs);
      this.#changed.add(check);
      check();
    });
  }

  #notify(): void {
    for (const check of this.#changed) check();
  }

  #error(complaint: string): Error {
    return new Error(
      `${this.title}: ${complaint}\nstdout: ${tail(this.#stdout)}\nstderr: ${tail(this.#stderr)}`,
    );
  }
}

/** Runs a command to its end, whatever its exit status. Fails only when it cannot start or takes too long. */
export async function run(
  command: string,
  args: readonly string[],
  options: ProcessOptions = {},
): Promise<Finished> {
  const started = new Running(command, args, options);
  try {
    return await started.wait(options.timeoutMs);
  } finally {
    if (started.ended === undefined) started.child.kill('SIGKILL');
  }
}

/** Runs a command that must end with status 0 and returns its standard output. */
export async function must(
  command: string,
  args: readonly string[],
  options: ProcessOptions = {},
): Promise<string> {
  const { status, signal, stdout, stderr } = await run(command, args, options);
  if (status === 0) return stdout;
  throw new Error(
    `${[command, ...args].join(' ')}: exit status ${status ?? signal}\n${tail(stdout + stderr)}`,
  );
}

/** Runs `cowbell` with these arguments to its end. */
export async function cowbell(args: readonly string[], options: ProcessOptions = {}): Promise<Finished> {
  return await run('env', [...COWBELL, ...args], options);
}

/** Runs `cowbell`, which must end with status 0, and returns its standard output. */
export async function mustCowbell(args: readonly string[], options: ProcessOptions = {}): Promise<string> {
  return await must('env', [...COWBELL, ...args], options);
}

/** Starts `cowbell` and leaves it running, as for `serve`. */
export function startCowbell(args: readonly string[], options: ProcessOptions = {}): Running {
  return new Running('env', [...COWBELL, ...args], options);
}

/** The ids of a process's children. */
export function childrenOf(parent: number | undefined): readonly number[] {
  const tasks = readdirSync(`/proc/${parent}/task`);
  return tasks.flatMap((task) =>
    readFileSync(`/proc/${parent}/task/${task}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
  );
}

/** A TCP port of the loopback interface that nobody listens on now. */
export async function freePort(): Promise<number> {
  return await new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const address = server.address();
      const port = typeof address === 'object' && address !== null ? address.port : 0;
      server.close(() => resolve(port));
    });
  });
}

/**
 * A new directory under the system's temporary directory, removed at the end of the test. Its path is short
 * enough for Unix sockets in it, which tap's own `t.testdir()` is not in a deep working copy.
 */
export function temporaryDirectory(t: { teardown(remove: () => void): void }): string {
  const path = mkdtempSync(join(tmpdir(), 'cowbell-'));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** The end of a long text, for messages. */
export function tail(text: string, characters: number = 2000): string {
  return text.length <= characters ? text : `...${text.slice(-characters)}`;
}
