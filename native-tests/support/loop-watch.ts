/**
 * `cowbell serve` with its event loop watched from inside: how long a turn of the loop took at most.
 *
 * A small script, required before Cowbell, sets a timer for every 2 ms and notes by how much each comes late. On
 * a loaded machine it is late without the loop's fault too, so two times are taken off: that in which the main
 * thread was ready to run and had no processor, which the kernel counts (`/proc/self/task/<id>/schedstat`,
 * second number), and that in which it waited for V8's threads to finish a collection, which have no processor
 * either (a scavenge of 2 ms took 118 ms this way). What is left is the loop's own: computing, collecting
 * garbage, or waiting inside a synchronous call.
 *
 * A thread of the pool that lost its processor while it held a lock (of the allocator, of the pool's queue) still
 * keeps the loop waiting. Where this user may, the server's threads therefore come before those of other
 * processes (SCHED_RR), so that only the server is measured, however busy the machine.
 *
 * SIGUSR2 makes it write what it saw since the last time, and begin again. Processes that the server starts
 * inherit the script, which does nothing in them.
 */
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ROOT, run, Running, temporaryDirectory } from './process.ts';

const ANSWER_MS_MAX = 20_000;
/** All threads of a process, but not those of its children. */
const REAL_TIME = ['--all-tasks', '--reset-on-fork', '--rr', '-p', '1'];

const WATCHER = `
if (process.argv[2] === 'serve') {
  const fs = require('node:fs');
  const { PerformanceObserver } = require('node:perf_hooks');
  const PERIOD_MS = 2;
  const descriptor = fs.openSync('/proc/self/task/' + process.pid + '/schedstat', 'r');
  const text = Buffer.alloc(128);
  const look = () => {
    const length = fs.readSync(descriptor, text, 0, text.length, 0);
    const [ran, queued] = text.toString('latin1', 0, length).split(' ');
    return { at: performance.now(), ranMs: Number(ran) / 1e6, queuedMs: Number(queued) / 1e6 };
  };
  let last, seen, late, collections;
  const begin = () => {
    last = look();
    [seen, late, collections] = [{ count: 0, worstMs: 0, worstLateMs: 0, over10: 0 }, [], []];
  };
  const tick = () => {
    const now = look();
    const lateMs = now.at - last.at - PERIOD_MS;
    seen.count += 1;
    seen.worstLateMs = Math.max(seen.worstLateMs, lateMs);
    // Collections are told later than they are over.
    if (lateMs > 5) late.push({ from: last, to: now, lateMs });
    last = now;
  };
  const judge = () => {
    for (const { from, to, lateMs } of late) {
      const collecting = collections.filter(({ at }) => at >= from.at - 1 && at <= to.at);
      const collectedMs = collecting.reduce((sum, { durationMs }) => sum + durationMs, 0);
      const waitedMs = lateMs - (to.queuedMs - from.queuedMs) - collectedMs;
      const ownMs = Math.max(waitedMs, to.ranMs - from.ranMs - PERIOD_MS);
      seen.worstMs = Math.max(seen.worstMs, ownMs);
      if (ownMs > 10) seen.over10 += 1;
    }
  };
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      collections.push({ at: entry.startTime, durationMs: entry.duration });
    }
  }).observe({ entryTypes: ['gc'] });
  begin();
  setInterval(tick, PERIOD_MS).unref();
  process.on('SIGUSR2', () => {
    tick();
    setTimeout(() => {
      judge();
      fs.writeFileSync(process.env.LOOP_WATCH + '.new', JSON.stringify(seen));
      fs.renameSync(process.env.LOOP_WATCH + '.new', process.env.LOOP_WATCH);
      begin();
    }, 100);
  });
}
`;

/** What the loop did since it was last asked. */
export interface LoopReport {
  /** Ticks of the watching timer. */
  readonly count: number;
  /** The longest that one turn of the loop took by itself; 0 where none took 5 ms. */
  readonly worstMs: number;
  /** The same with the time that it had no processor. */
  readonly worstLateMs: number;
  /** How many turns took more than 10 ms by themselves. */
  readonly over10: number;
}

export class WatchedServer {
  readonly server: Running;
  readonly uri: string;
  readonly #reportPath: string;

  private constructor(server: Running, uri: string, reportPath: string) {
    this.server = server;
    this.uri = uri;
    this.#reportPath = reportPath;
  }

  /** Serves with `words` until the end of the test. */
  static async start(
    t: { teardown(stop: () => void | Promise<void>): void; comment(text: string): void },
    words: readonly string[],
  ): Promise<WatchedServer> {
    const directory = temporaryDirectory(t);
    const watcher = join(directory, 'watch.cjs');
    writeFileSync(watcher, WATCHER);
    const report = join(directory, 'report.json');
    const command = [
      '-u',
      'NODE_OPTIONS',
      process.execPath,
      '--require',
      watcher,
      join(ROOT, 'bin/cowbell.cjs'),
    ];
    const server = new Running('env', [...command, 'serve', ...words], { env: { LOOP_WATCH: report } });
    t.teardown(async () => {
      if (server.ended === undefined) await server.stop('SIGKILL');
    });
    const line = await server.waitForLine(/^ready /);
    const { status } = await run('chrt', [...REAL_TIME, String(server.child.pid)]);
    if (status !== 0) t.comment('The server runs at ordinary priority: what else runs here is measured too');
    return new WatchedServer(server, line.slice('ready '.length), report);
  }

  /** What the loop did since the last call, or the start. */
  async report(): Promise<LoopReport> {
    rmSync(this.#reportPath, { force: true });
    this.server.child.kill('SIGUSR2');
    const untilMs = performance.now() + ANSWER_MS_MAX;
    while (!existsSync(this.#reportPath)) {
      if (performance.now() > untilMs) throw new Error('The watched loop does not answer');
      await sleep(10);
    }
    const report: LoopReport = JSON.parse(readFileSync(this.#reportPath, 'utf8'));
    return report;
  }
}
