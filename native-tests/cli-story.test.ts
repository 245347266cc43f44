/**
 * Goal: the main job through the command line: a volume is backed up while it is served, in full and
 * incrementally, and each set restores what the volume held at its freeze.
 *
 * Method: qemu-io writes through NBD; copies taken from the export between the backups are compared with the
 * restored files, byte by byte.
 */
import { join } from 'node:path';
import t from 'tap';
import { must, mustCowbell, startCowbell, temporaryDirectory } from './support/process.ts';
import { requireTools } from './support/tools.ts';

t.test('create, serve, back up twice, restore both', async (t) => {
  if (!requireTools(t, ['qemu-io', 'nbdcopy'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  await mustCowbell(['volume', 'create', at('vol'), '--size', '64M']);
  await mustCowbell(['store', 'init', at('store')]);
  const server = startCowbell(['serve', at('vol')]);
  const uri = (await server.waitForLine(/^ready /)).slice('ready '.length);
  const write = (...commands: string[]): Promise<string> =>
    must('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri]);
  const backUp = async (...options: string[]): Promise<Record<string, unknown>> => {
    const lines = await mustCowbell(['--json', 'backup', '--store', at('store'), at('vol'), ...options]);
    const events = lines.trim().split('\n').map(parse);
    t.strictSame(events.at(-1), { event: 'done' });
    const set = events.at(-2) ?? {};
    t.match(set, { event: 'set', volume: 'vol', freezeMs: Number, durationMs: Number, diverted: Number });
    return set;
  };

  await write('write -P 1 0 1M', 'write -P 2 10M 300k', 'write -P 3 63M 1M', 'flush');
  await must('nbdcopy', [uri, at('first.raw')]);
  const full = await backUp('--level', 'full', '--codec', 'none');
  t.match(full, { level: 'full', tracks: 16 + 5 + 16 });

  await write('write -P 4 512 1k', 'write -z 63M 1M', 'write -P 5 30M 64k', 'flush');
  await must('nbdcopy', [uri, at('second.raw')]);
  const incremental = await backUp();
  t.match(incremental, { level: 'incremental', tracks: 1 + 16 + 1 });
  await write('write -P 9 0 64M');
  const stopped = await server.stop();
  t.equal(stopped.status, 0, stopped.stderr);

  await mustCowbell(['store', 'verify', at('store')]);
  await mustCowbell(['restore', at('store'), String(full['set']), at('full.out')]);
  await mustCowbell(['restore', at('store'), 'latest:vol', at('latest.out')]);
  await must('cmp', [at('first.raw'), at('full.out')]);
  await must('cmp', [at('second.raw'), at('latest.out')]);
});

function parse(line: string): Record<string, unknown> {
  const value: unknown = JSON.parse(line);
  return typeof value === 'object' && value !== null ? { ...value } : {};
}
