/**
 * Goal: a server with a config backs up by itself and keeps what its retention says; a file with a mistake, read again
 * at SIGHUP, changes nothing and is told with its line; volumes come and go; `status --check` ends with 1 exactly where
 * somebody has to look; a volume goes on without its home as the config says last; what policies did is known after the
 * server was killed.
 *
 * Method: two volumes and a store, with policies that are due every other second, through the command line alone.
 */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { cowbell, must, mustCowbell, startCowbell, temporaryDirectory } from './support/process.ts';
import { backUp, eventsOf, statusOf, visibleSets } from './support/served.ts';
import { requireTools } from './support/tools.ts';

/** The config: the policies of volume a, and further volumes. Its first line is the one of `stores`. */
function configOf(policies: readonly string[], volumes: readonly string[] = []): string {
  return [
    'stores: {near: {path: store}, gone: {path: nowhere}}',
    'volumes:',
    '  - path: a',
    '    minimumCopies: 1',
    '    policies:',
    ...policies.map((policy) => `      - ${policy}`),
    ...volumes.map((volume) => `  - ${volume}`),
    '',
  ].join('\n');
}

const BACKUPS =
  '{name: often, when: {every: 1s, changed: 1M}, do: backup, store: near, retention: {keepLast: 2}}';
/** Done once. */
const HOURLY = BACKUPS.replace('1s', '1h');
const SNAPSHOTS = '{name: seconds, when: {every: 1s}, do: snapshot, snapshot: {keep: 1}}';
const FAILING = '{name: failing, when: {changed: 1M}, do: backup, store: gone}';

interface World {
  readonly at: (name: string) => string;
  readonly config: string;
}

/** Volumes a and b and a store; the first config is that of `policies`. */
async function makeWorld(
  t: { teardown(stop: () => void): void },
  policies: readonly string[],
): Promise<World> {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  await Promise.all(['a', 'b'].map((name) => mustCowbell(['volume', 'create', at(name), '--size', '8M'])));
  await mustCowbell(['store', 'init', at('store')]);
  const config = at('cowbell.yaml');
  writeFileSync(config, configOf(policies));
  return { at, config };
}

t.test('policies run, are kept, and are told', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const { at, config } = await makeWorld(t, [BACKUPS, SNAPSHOTS]);
  const server = startCowbell(['serve', '--config', config]);
  const uri = (await server.waitForLine(/^ready /)).slice('ready '.length);
  await server.waitForLine(/^policy often of a begins: every$/);
  await server.waitForLine(/^policy often of a done: full set /);
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 2M', uri]);
  const ended = await server.waitForLine(/^policy often of a done: .*, [1-9] removed$/);
  t.match(ended, /, 2 removed$/, 'two of three go: what the last but one is built on is merged into it');
  await server.waitForLine(/^policy seconds of a done: snapshot seconds-\d{8}T\d{6}Z, 1 removed$/);
  t.equal((await visibleSets(at('store'))).length <= 3, true);
  t.match(await cowbell(['status', '--check', at('a')]), { status: 0, stdout: '' });
  t.match(await statusOf(at('a')), {
    served: true,
    minimumCopies: 1,
    copies: { notBackedUp: { count: 1 }, backedUp: { count: 2 } },
    policies: [
      { name: 'often', does: `backup to ${at('store')}, auto`, outcomes: [{ state: 'done', level: 'full' }] },
      { name: 'seconds' },
    ],
  });
  const killed = await server.stop('SIGKILL');
  t.equal(killed.signal, 'SIGKILL');
  const { policies } = await statusOf(at('a'));
  t.match(policies, [{ name: 'often', state: 'not-served', outcomes: [{ state: 'done', level: 'full' }] }]);
});

t.test('a config is read again, and refused where anything is wrong', async (t) => {
  const { at, config } = await makeWorld(t, [HOURLY]);
  const server = startCowbell(['serve', '--json', '--config', config]);
  await server.waitForLine(/"event":"ready"/);
  await server.waitForLine(/"event":"policy".*"state":"done"/);

  writeFileSync(config, configOf([HOURLY.replace('often', 'other'), '{name: x, when: {evry: 1s}}']));
  server.child.kill('SIGHUP');
  const [refused] = eventsOf(await server.waitForLine(/"reload-refused"/));
  t.match(refused, {
    code: 'bad-config',
    problems: [
      { line: 7, column: 9, path: 'volumes[0].policies[1]', reason: 'do is missing, wanted here' },
      { line: 7, column: 26, reason: 'The key is not known, did you mean every?' },
    ],
  });
  t.match(server.stderr, `${config}:7:26: volumes[0].policies[1].when.evry: The key is not known`);
  t.match(await statusOf(at('a')), { policies: [{ name: 'often' }] }, 'the old one is as it was');

  writeFileSync(config, configOf([HOURLY], ['path: nowhere', 'path: b']));
  server.child.kill('SIGHUP');
  await server.waitForLine(/"reload-refused".*holds no volume|"reload-refused".*nowhere/);
  t.match(await statusOf(at('b')), { served: false }, 'and nothing of the new one is taken');

  writeFileSync(config, `listen: ['127.0.0.1:1']\n${configOf([FAILING], ['path: b'])}`);
  server.child.kill('SIGHUP');
  t.match(eventsOf(await server.waitForLine(/"event":"reloaded"/)), [{ added: [at('b')], removed: [] }]);
  t.match(server.stderr, /which cannot change while serving/);
  t.match(await statusOf(at('b')), { served: true });
  t.match(await backUp(at('b'), at('store')), { volume: 'b' }, 'commands reach it');
  await server.waitForLine(/"policy":"failing".*"state":"failed"/);
  const check = await cowbell(['status', '--check', at('a')]);
  t.equal(check.status, 1);
  t.match(check.stdout, /^problem: Policy failing failed at .*nowhere/m);
  t.match(await cowbell(['status', '--check', at('b')]), { status: 0 });

  writeFileSync(config, configOf([HOURLY]));
  server.child.kill('SIGHUP');
  t.match(eventsOf(await server.waitForLine(/"removed":\["/)), [{ added: [], removed: [at('b')] }]);
  t.match(await statusOf(at('b')), { served: false, startedClean: true });
  const { status } = await server.stop();
  t.equal(status, 0);
  t.match(await cowbell(['status', '--check', at('a')]), {
    stdout: /^$|^problem: Policy often was broken off/,
  });
});

t.test('a volume goes on without its home as the config says last', async (t) => {
  if (!requireTools(t, ['qemu-io'])) return;
  const { at, config } = await makeWorld(t, [HOURLY]);
  const noDeltas = '{path: b, survive: {store: near}}';
  writeFileSync(config, configOf([HOURLY], [noDeltas]));
  t.match(await cowbell(['serve', '--config', config]), {
    status: 2,
    stderr: /Volume b cannot go on without its home: it has no deltas/,
  });
  await mustCowbell(['volume', 'create', at('c'), '--size', '8M', '--delta', at('deltas')]);
  mkdirSync(at('spare'));
  writeFileSync(config, configOf([HOURLY], ['{path: c, survive: {store: gone}}']));
  const server = startCowbell(['serve', '--config', config]);
  const uri = await server.waitForLine(/^ready .*c$|^ready .*\/c\?/);
  writeFileSync(config, configOf([HOURLY], ['{path: c, survive: {store: near, spare: spare}}', noDeltas]));
  server.child.kill('SIGHUP');
  await server.waitForLine(/^reload refused, .*it has no deltas/);
  writeFileSync(config, configOf([HOURLY], ['{path: c, survive: {store: near, spare: spare}}']));
  server.child.kill('SIGHUP');
  await server.waitForLine(/^reloaded /);
  const url = uri.slice('ready '.length);
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 2M', url]);
  rmSync(at('c/home.raw'));
  await server.waitForLine(/^c has all of its home again$/);
  await must('qemu-io', ['-f', 'raw', '-c', 'read -P 7 1M 2M', '-c', 'write -P 8 0 1M', url]);
  t.match(server.stderr, /goes on in .*\/spare\/home-/);
  t.match(await server.stop(), { status: 0 });
  t.match((await statusOf(at('c')))['home'], /\/spare\/home-/);
});

t.test('a config is told to be right or wrong without a server', async (t) => {
  const config = join(temporaryDirectory(t), 'cowbell.yaml');
  writeFileSync(config, configOf([HOURLY]));
  t.match(await cowbell(['config', 'check', config]), {
    status: 0,
    stdout: `${config}: 1 volume, 1 policy\n`,
  });
  writeFileSync(config, configOf([FAILING, FAILING]));
  t.match(await cowbell(['config', 'check', config]), {
    status: 2,
    stdout: `${config}:7:9: volumes[0].policies[1]: Policy failing is there twice, wanted names of their own\n`,
  });
  t.match(await cowbell(['serve', '--config', config]), { status: 2, stderr: /there twice/ });
  t.match(await cowbell(['serve', '--config', config, '--socket', 'x']), { status: 2, stderr: /both given/ });
});
