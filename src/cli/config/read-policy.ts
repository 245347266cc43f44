/** The policies of a config file: when, what, and how, as the options of the commands have it. */

import { LIMITS } from '../../base/index.ts';
import type { RetentionPolicy } from '../../blockset/index.ts';
import {
  type BackupAction,
  type FreezeHooks,
  type KeyPlace,
  LEVELS,
  ON_FULL,
  type PolicyAction,
  type SnapshotAction,
  type VolumePolicy,
} from '../../daemon/index.ts';
import type { Condition } from '../../policy/index.ts';
import { absolutePath, readCodec, readContainer, readTimeMs } from '../arguments.ts';
import { UsageError } from '../exit.ts';
import {
  count,
  flag,
  listOf,
  type MapRead,
  oneOf,
  oneOrMore,
  optional,
  type Reader,
  record,
  required,
  scalar,
  someText,
} from './document.ts';
import { assertName, duration, schedule, share, size, snapshotName, timeZone } from './values.ts';

/** What policies refer to. */
export interface PolicySurroundings {
  /** Relative paths are relative to it. */
  readonly directory: string;
  readonly timeZone: string;
  /** Those that could be read. */
  readonly stores: ReadonlyMap<string, ConfigStore>;
  /** All that are there: what is wrong with one is told once, not by each policy. */
  readonly storeNames: readonly string[];
}

export interface ConfigStore {
  readonly name: string;
  readonly path: string;
  readonly key?: KeyPlace | undefined;
}

const DURATIONS = { min: 1000, max: LIMITS.policyEveryMsMax };
const SHORT_DURATIONS = { min: 0, max: LIMITS.policyEveryMsMax };
const HOOK_TIMES = { min: LIMITS.hookTimeoutMsMin, max: LIMITS.hookTimeoutMsMax };
const WAIT_TIMES = { min: LIMITS.containerWaitMsMin, max: LIMITS.containerWaitMsMax };
const KEEP = { min: 0, max: 1_000_000 };

/** A condition's time zone is known only where the policy is. */
type Unplaced = Condition | { readonly kind: 'schedule'; readonly pattern: string };

/** `when`: a map of conditions, or a list of such maps. Any of them makes the policy due. */
const when: Reader<readonly Unplaced[]> = (item) => {
  const sets = oneOrMore(conditions, LIMITS.policyCountMax)(item);
  return sets?.flat();
};

const conditions: Reader<readonly Unplaced[]> = record(
  {
    schedule: optional(schedule),
    every: optional(duration(DURATIONS)),
    changed: optional(size),
    deltas: optional(share),
  },
  ({ values, isSound }, item) => {
    if (!isSound) return undefined;
    const { schedule: pattern, every: everyMs, changed: bytes, deltas: fill } = values;
    const found: readonly Unplaced[] = [
      ...(pattern === undefined ? [] : [{ kind: 'schedule', pattern } as const]),
      ...(everyMs === undefined ? [] : [{ kind: 'every', everyMs } as const]),
      ...(bytes === undefined ? [] : [{ kind: 'changed', bytes } as const]),
      ...(fill === undefined ? [] : [{ kind: 'deltas', fill } as const]),
    ];
    if (found.length > 0) return found;
    return item.wrong('No condition is given, wanted schedule, every, changed or deltas');
  },
);

const retention: Reader<RetentionPolicy> = record(
  {
    keepLast: optional(count(KEEP)),
    keepHourly: optional(count(KEEP)),
    keepDaily: optional(count(KEEP)),
    keepWeekly: optional(count(KEEP)),
    keepMonthly: optional(count(KEEP)),
    keepYearly: optional(count(KEEP)),
  },
  ({ values, isSound }, item) => {
    if (!isSound) return undefined;
    if (Object.values(values).some((number) => number !== undefined && number > 0)) return values;
    return item.wrong('No rule keeps a set, wanted at least one such as keepDaily: 7');
  },
);

const snapshot = record(
  { name: optional(snapshotName), keep: required(count({ min: 1, max: LIMITS.snapshotCountMax })) },
  ({ values, isSound }) =>
    isSound && values.keep !== undefined ? { ...values, keep: values.keep } : undefined,
);

const command: Reader<string> = scalar('a shell command', (value) => {
  const lengthBytes = Buffer.byteLength(value);
  if (value.trim() === '') throw new UsageError('It is empty, wanted a shell command');
  if (lengthBytes <= LIMITS.hookCommandBytesMax) return value;
  throw new UsageError(
    `It has ${lengthBytes} bytes, wanted at most ${LIMITS.hookCommandBytesMax}; put it into a script`,
  );
});

function fieldsOf(surroundings: PolicySurroundings) {
  const { directory } = surroundings;
  return {
    name: required(named),
    when: required(when),
    do: required(oneOf(['backup', 'snapshot'])),
    timeZone: optional(timeZone),
    jitter: optional(duration(SHORT_DURATIONS)),
    grace: optional(duration(SHORT_DURATIONS)),
    catchUp: optional(flag),
    preFreeze: optional(command),
    postFreeze: optional(command),
    hookTimeout: optional(scalar('a time such as 30s', (value) => readTimeMs('It', value, HOOK_TIMES))),
    snapshot: optional(snapshot),
    store: optional(storeOf(surroundings)),
    level: optional(oneOf(LEVELS)),
    fullEvery: optional(count({ min: 1, max: LIMITS.chainSetCountMax })),
    codec: optional(scalar('a codec such as zstd', (value) => readCodec(value, 'It'))),
    lanes: optional(
      listOf(
        scalar('a directory', (value) => absolutePath('It', value, directory)),
        LIMITS.laneDirectoryCountMax,
      ),
    ),
    rate: optional(size),
    container: optional(
      listOf(
        scalar('memory:<size> or <path>:<size>', (value) => readContainer([value], directory, 'It')),
        LIMITS.containerAreaCountMax,
      ),
    ),
    onFull: optional(oneOf(ON_FULL)),
    maxWait: optional(scalar('a time such as 30s', (value) => readTimeMs('It', value, WAIT_TIMES))),
    notify: optional(command),
    retention: optional(retention),
  };
}

const named: Reader<string> = scalar('a name', (value) => {
  assertName(value);
  return value;
});

type Read = MapRead<ReturnType<typeof fieldsOf>>;

/** Keys that say how a backup is made, and mean nothing for a snapshot. */
const BACKUP_KEYS = [
  'store',
  'level',
  'fullEvery',
  'codec',
  'lanes',
  'rate',
  'container',
  'onFull',
  'maxWait',
  'notify',
  'retention',
] as const;

/** One policy of a volume. */
export function policy(surroundings: PolicySurroundings): Reader<VolumePolicy> {
  return record(fieldsOf(surroundings), (read) => {
    const { name, when: unplaced, do: kind } = read.values;
    const hooks = hooksOf(read);
    const action = kind === undefined ? undefined : actionOf(kind, read, hooks, surroundings);
    if (kind === 'snapshot' && unplaced?.some((one) => one.kind === 'deltas') === true) {
      return read
        .at('when')
        .wrong('The condition deltas is given, and a snapshot takes nothing from the delta store');
    }
    if (!read.isSound || name === undefined || unplaced === undefined || action === undefined)
      return undefined;
    const zone = read.values.timeZone ?? surroundings.timeZone;
    return {
      name,
      conditions: unplaced.map((one) => (one.kind === 'schedule' ? { ...one, timeZone: zone } : one)),
      jitterMs: read.values.jitter ?? 0,
      graceMs: read.values.grace ?? LIMITS.policyGraceMsDefault,
      catchUp: read.values.catchUp ?? true,
      action,
    };
  });
}

/** `false` where something is wrong with them; undefined where there are none. */
function hooksOf(read: Read): FreezeHooks | false | undefined {
  const { preFreeze: pre, postFreeze: post, hookTimeout } = read.values;
  if (pre === undefined && post === undefined) {
    if (!read.has('hookTimeout') || read.has('preFreeze') || read.has('postFreeze')) return undefined;
    read.at('hookTimeout').wrong('It is given without a hook, wanted preFreeze or postFreeze too');
    return false;
  }
  return {
    ...(pre === undefined ? {} : { pre }),
    ...(post === undefined ? {} : { post }),
    timeoutMs: hookTimeout ?? LIMITS.hookTimeoutMsDefault,
  };
}

function actionOf(
  kind: PolicyAction['kind'],
  read: Read,
  hooks: FreezeHooks | false | undefined,
  surroundings: PolicySurroundings,
): PolicyAction | undefined {
  const action =
    kind === 'snapshot'
      ? snapshotOf(read)
      : backupOf(read, surroundings, hooks === false ? undefined : hooks);
  if (hooks === false || action === undefined) return undefined;
  return action.kind === 'snapshot' && hooks !== undefined ? { ...action, hooks } : action;
}

function snapshotOf(read: Read): SnapshotAction | undefined {
  const strays = BACKUP_KEYS.filter((key) => read.has(key));
  for (const key of strays) read.at(key).wrong('It is of backups only, and the policy does a snapshot');
  if (!read.has('snapshot')) return read.at('snapshot').wrong('snapshot is missing, wanted how many to keep');
  const { snapshot: said, name } = read.values;
  if (said === undefined || name === undefined || strays.length > 0) return undefined;
  const { prefix, suffix } = said.name ?? { prefix: `${name}-`, suffix: '' };
  return { kind: 'snapshot', prefix, suffix, keep: said.keep };
}

function backupOf(
  read: Read,
  { directory }: PolicySurroundings,
  hooks: FreezeHooks | undefined,
): BackupAction | undefined {
  const { values } = read;
  if (read.has('snapshot'))
    return read.at('snapshot').wrong('It is of snapshots only, and the policy does a backup');
  if (!read.has('store'))
    return read.at('store').wrong('store is missing, wanted the name of one of the stores');
  const twice = values.lanes?.find((lane, index) => values.lanes?.indexOf(lane) !== index);
  if (twice !== undefined) return read.at('lanes').wrong(`Lane ${twice} is named twice, wanted once`);
  const isBounded = values.onFull === 'cancel';
  if (values.maxWait !== undefined && !isBounded) {
    return read.at('maxWait').wrong('It is given and writes wait, wanted onFull: cancel too');
  }
  const { store, fullEvery, notify, rate, lanes, container = [] } = values;
  if (store === undefined) return undefined;
  const areas = container.flat();
  return {
    kind: 'backup',
    params: {
      store: store.path,
      level: values.level ?? 'auto',
      ...(fullEvery === undefined ? {} : { fullEvery }),
      style: {
        ...(values.codec ?? readCodec('zstd')),
        ...(lanes === undefined || lanes.length === 0 ? {} : { lanes }),
        ...(rate === undefined ? {} : { rateBytesPerSecond: rate }),
      },
      container: areas.length === 0 ? readContainer([], directory) : areas,
      ...(isBounded ? { maxWaitMs: values.maxWait ?? LIMITS.containerWaitMsDefault } : {}),
      ...(hooks === undefined ? {} : { hooks }),
      ...(notify === undefined ? {} : { notify }),
    },
    key: store.key,
    retention: values.retention,
  };
}

/** One of the stores, by its name. */
export function storeOf({ stores, storeNames }: PolicySurroundings): Reader<ConfigStore> {
  return (item) => {
    const name = someText('the name of one of the stores')(item);
    if (name === undefined || (storeNames.includes(name) && !stores.has(name))) return undefined;
    const wanted = storeNames.length === 0 ? 'and stores has none' : `wanted one of ${storeNames.join(', ')}`;
    return stores.get(name) ?? item.wrong(`There is no store '${name}', ${wanted}`);
  };
}
