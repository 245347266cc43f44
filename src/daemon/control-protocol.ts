/**
 * The control protocol: newline-delimited JSON on `<volume>/control.sock`. FORMAT.md describes it.
 *
 * What comes from outside is checked here, member by member, and answered with a sentence that names the
 * member; nothing behind this file sees an unchecked value. It knows no sockets.
 */

import { isAbsolute } from 'node:path';
import type { MediumTarget, WriteStyle } from '../backup/index.ts';
import { LIMITS, messageOf } from '../base/index.ts';
import type { StoreKey } from '../blockset/index.ts';
import { isLabel } from '../media/index.ts';
import {
  type BackupMember,
  type BackupParams,
  CODECS,
  type ContainerSpec,
  LEVELS,
  type SnapshotParams,
} from './backup-params.ts';
import type { CopyParams } from './copy-params.ts';
import { DaemonError, type WireError } from './errors.ts';
import type { FillParams } from './fill-from-media.ts';
import type { FreezeHooks } from './freeze-hooks.ts';
import type { ReplaceParams, ScrubParams } from './mirror-params.ts';

export type ControlRequest = { readonly id: number } & (
  | { readonly command: 'status' }
  | { readonly command: 'show' }
  | { readonly command: 'backup' | 'backup-plan'; readonly params: BackupParams }
  | { readonly command: 'copy' | 'copy-plan'; readonly params: CopyParams }
  | { readonly command: 'fill'; readonly params: FillParams }
  | { readonly command: 'snapshot-create'; readonly params: SnapshotParams }
  | { readonly command: 'snapshot-list' }
  | { readonly command: 'snapshot-delete'; readonly params: { readonly name: string } }
  | { readonly command: 'snapshot-rollback'; readonly params: { readonly name: string } }
  | { readonly command: 'snapshot-changes'; readonly params: SnapshotChanges }
  | { readonly command: 'snapshot-clone'; readonly params: SnapshotClone }
  | { readonly command: 'cancel'; readonly params: { readonly session?: string } }
  | { readonly command: 'scrub'; readonly params: ScrubParams }
  | { readonly command: 'replace'; readonly params: ReplaceParams }
  | { readonly command: 'grow'; readonly params: { readonly sizeBytes: number } }
);

/** Which two snapshots are compared; the volume itself where `to` is left out. */
export interface SnapshotChanges {
  readonly from: string;
  readonly to?: string;
  /** Extents from here on; the first answer where left out. */
  readonly offsetBytes?: number;
}

/** Which snapshot becomes a volume of its own, and where. Paths are absolute. */
export interface SnapshotClone {
  readonly name: string;
  /** The new volume's directory. */
  readonly directory: string;
  /** Path of the new volume's home; in its directory where left out. */
  readonly home?: string;
}

export const COMMANDS = [
  'status',
  'show',
  'backup',
  'backup-plan',
  'copy',
  'copy-plan',
  'fill',
  'cancel',
  'grow',
  'scrub',
  'replace',
  'snapshot-create',
  'snapshot-list',
  'snapshot-delete',
  'snapshot-rollback',
  'snapshot-changes',
  'snapshot-clone',
] as const;

/** A line of the server. `id` is null where the request had none that could be read. */
export type ControlReply = { readonly id: number | null } & (
  | { readonly event: 'done'; readonly result: unknown }
  | { readonly event: 'error'; readonly error: WireError }
  | { readonly event: 'session'; readonly session: string }
  | { readonly event: 'progress'; readonly progress: unknown }
  | { readonly event: 'warning'; readonly warning: string }
);

type Json = Readonly<Record<string, unknown>>;

/** One line with its newline. */
export function encodeLine(message: ControlRequest | ControlReply): Buffer {
  return Buffer.from(`${JSON.stringify(message)}\n`, 'utf8');
}

/** What was wrong with a request line, and the id to answer under. */
export interface RefusedRequest {
  readonly id: number | null;
  readonly error: DaemonError<'bad-request'>;
}

/** Reads one request line. Never throws: a peer's mistake is an answer. */
export function parseRequest(line: string): ControlRequest | RefusedRequest {
  let id: number | null = null;
  try {
    const value = parseObject(line, 'The request');
    id = readId(value['id']);
    return readRequest(id, value);
  } catch (error) {
    if (error instanceof DaemonError && error.code === 'bad-request')
      return { id, error: badRequest(error.message) };
    throw error;
  }
}

/** @throws {DaemonError} bad-request when the line is no reply. */
export function parseReply(line: string): ControlReply {
  const value = parseObject(line, 'The reply');
  const id = value['id'] === null ? null : readId(value['id']);
  const event = value['event'];
  if (event === 'done') return { id, event, result: value['result'] };
  if (event === 'progress') return { id, event, progress: value['progress'] };
  if (event === 'session') return { id, event, session: readString(value, 'session') };
  if (event === 'warning') return { id, event, warning: readString(value, 'warning') };
  if (event === 'error') return { id, event, error: readWireError(value['error']) };
  throw badRequest(`The reply's event is ${show(event)}, wanted done, error, session, progress or warning`);
}

function readRequest(id: number, value: Json): ControlRequest {
  const command = COMMANDS.find((known) => known === value['command']);
  if (command === undefined) {
    throw badRequest(`Command ${show(value['command'])} is unknown, wanted one of ${COMMANDS.join(', ')}`);
  }
  const params = value['params'] === undefined ? {} : asObject(value['params'], 'Member params');
  if (command === 'backup' || command === 'backup-plan')
    return { id, command, params: readBackupParams(params) };
  if (command === 'copy' || command === 'copy-plan') return { id, command, params: readCopyParams(params) };
  if (command === 'fill') return { id, command, params: readFillParams(params) };
  if (command === 'cancel') {
    const session = params['session'];
    return { id, command, params: session === undefined ? {} : { session: readString(params, 'session') } };
  }
  if (command === 'snapshot-create') return { id, command, params: readSnapshotParams(params) };
  if (command === 'snapshot-delete' || command === 'snapshot-rollback') {
    return { id, command, params: { name: readString(params, 'name') } };
  }
  if (command === 'snapshot-changes') {
    return { id, command, params: readChanges(params) };
  }
  if (command === 'snapshot-clone') return { id, command, params: readCloneParams(params) };
  if (command === 'grow') return { id, command, params: { sizeBytes: readBytes(params, 'sizeBytes') } };
  if (command === 'scrub') {
    const rate = readRate(params['rateBytesPerSecond']);
    return { id, command, params: { repair: params['repair'] === true, ...rate } };
  }
  if (command === 'replace') {
    const rate = readRate(params['rateBytesPerSecond']);
    return {
      id,
      command,
      params: { member: readString(params, 'member'), place: readPlace(params), ...rate },
    };
  }
  return { id, command };
}

function readPlace(params: Json): string {
  const place = readString(params, 'place');
  if (isAbsolute(place) || /^[a-z][a-z0-9.+-]*:/i.test(place)) return place;
  throw badRequest(`Member place is ${show(place)}, wanted an absolute path or a URI`);
}

function readChanges(params: Json): SnapshotChanges {
  const { to, offsetBytes } = params;
  if (offsetBytes !== undefined && !isCount(offsetBytes)) {
    throw badRequest(`Member offsetBytes is ${show(offsetBytes)}, wanted a whole number of bytes`);
  }
  return {
    from: readString(params, 'from'),
    ...(to === undefined ? {} : { to: readString(params, 'to') }),
    ...(offsetBytes === undefined ? {} : { offsetBytes }),
  };
}

function isCount(value: unknown): value is number {
  return isWhole(value) && value >= 0;
}

function readBackupParams(params: Json): BackupParams {
  return {
    store: readAbsolute(params, 'store'),
    ...readMedium(params),
    ...readKey(params['key']),
    level: readChoice(params, 'level', LEVELS),
    style: readStyle(asObject(params['style'], 'Member style')),
    ...readFullEvery(params['fullEvery']),
    container: readContainer(params['container']),
    ...readMaxWait(params['maxWaitMs']),
    ...(params['snapshot'] === undefined ? {} : { snapshot: readString(params, 'snapshot') }),
    ...readMembers(params['others']),
    ...readHooks(params['hooks']),
    ...(params['notify'] === undefined ? {} : { notify: readCommand(params, 'notify') }),
  };
}

function readFillParams(params: Json): FillParams {
  const { places } = params;
  const countMax = LIMITS.fillMediumCountMax;
  if (!Array.isArray(places) || places.length === 0 || places.length > countMax)
    throw badRequest(`Member places is ${show(places)}, wanted a list of 1 to ${countMax}`);
  return {
    places: places.map((place: unknown) => {
      if (typeof place === 'string' && isAbsolute(place)) return place;
      throw badRequest(`A member of places is ${show(place)}, wanted an absolute path`);
    }),
    set: readString(params, 'set'),
    ...(params['load'] === undefined ? {} : { load: readCommand(params, 'load') }),
  };
}

function readCopyParams(params: Json): CopyParams {
  const { targets } = params;
  if (!Array.isArray(targets) || targets.length === 0 || targets.length > LIMITS.restoreTargetCountMax) {
    throw badRequest(
      `Member targets is ${show(targets)}, wanted a list of 1 to ${LIMITS.restoreTargetCountMax}`,
    );
  }
  return {
    targets: targets.map((target: unknown) => {
      if (typeof target === 'string' && (isAbsolute(target) || /^[a-z][a-z0-9.+-]*:/i.test(target)))
        return target;
      throw badRequest(`A member of targets is ${show(target)}, wanted an absolute path or a URI`);
    }),
    ...(params['remap'] === undefined ? {} : { remap: readAbsolute(params, 'remap') }),
    ...(params['snapshot'] === undefined ? {} : { snapshot: readString(params, 'snapshot') }),
    full: params['full'] === true,
    container: readContainer(params['container']),
    ...readMaxWait(params['maxWaitMs']),
    ...readRate(params['rateBytesPerSecond']),
  };
}

/** What only a store can do is refused; see `BackupParams`. */
function readMedium(params: Json): { readonly medium?: MediumTarget } {
  if (params['medium'] === undefined) return {};
  const medium = asObject(params['medium'], 'Member medium');
  const { sizeBytes, overwrite } = medium;
  const label = readString(medium, 'label');
  if (!isLabel(label)) throw badRequest(`Member label is ${show(label)}, wanted a label of media`);
  if (sizeBytes !== undefined && (!isCount(sizeBytes) || sizeBytes === 0)) {
    throw badRequest(`Member sizeBytes is ${show(sizeBytes)}, wanted at least 1`);
  }
  const level = params['level'];
  if (level !== 'auto' && level !== 'full') {
    throw badRequest(`Member level is ${show(level)}, wanted auto or full where a medium is given`);
  }
  const { lanes } = asObject(params['style'], 'Member style');
  if (params['key'] !== undefined || params['others'] !== undefined || lanes !== undefined) {
    throw badRequest('Members key, others and lanes are for stores, wanted none of them with a medium');
  }
  return {
    medium: {
      place: readAbsolute(medium, 'place'),
      label,
      ...(sizeBytes === undefined ? {} : { sizeBytes }),
      ...(medium['load'] === undefined ? {} : { load: readCommand(medium, 'load') }),
      ...(overwrite === true ? { overwrite } : {}),
    },
  };
}

function readStyle(style: Json): WriteStyle {
  const { compressionLevel, rateBytesPerSecond, lanes } = style;
  const { compressionLevelMin: min, compressionLevelMax: max } = LIMITS;
  if (
    compressionLevel !== undefined &&
    (!isWhole(compressionLevel) || compressionLevel < min || compressionLevel > max)
  ) {
    throw badRequest(`Member compressionLevel is ${show(compressionLevel)}, wanted ${min} to ${max}`);
  }
  return {
    codec: readChoice(style, 'codec', CODECS),
    ...(compressionLevel === undefined ? {} : { compressionLevel }),
    ...readRate(rateBytesPerSecond),
    ...(lanes === undefined ? {} : { lanes: readLanes(lanes) }),
  };
}

function readRate(value: unknown): { readonly rateBytesPerSecond?: number } {
  if (value === undefined) return {};
  if (isCount(value) && value > 0) return { rateBytesPerSecond: value };
  throw badRequest(`Member rateBytesPerSecond is ${show(value)}, wanted at least 1`);
}

function readLanes(value: unknown): readonly string[] {
  if (!Array.isArray(value)) throw badRequest(`Member lanes is ${show(value)}, wanted a list`);
  if (value.length > LIMITS.laneDirectoryCountMax) {
    throw badRequest(
      `Member lanes has ${value.length} directories, wanted at most ${LIMITS.laneDirectoryCountMax}`,
    );
  }
  return value.map((lane: unknown) => {
    if (typeof lane === 'string' && isAbsolute(lane)) return lane;
    throw badRequest(`A member of lanes is ${show(lane)}, wanted an absolute path`);
  });
}

function isWhole(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value);
}

function readFullEvery(value: unknown): { readonly fullEvery?: number } {
  if (value === undefined) return {};
  const max = LIMITS.chainSetCountMax;
  if (isCount(value) && value >= 1 && value <= max) return { fullEvery: value };
  throw badRequest(`Member fullEvery is ${show(value)}, wanted a whole number of sets from 1 to ${max}`);
}

/** The key of an encrypted store. What it holds is not shown in a refusal, whatever it is. */
function readKey(value: unknown): { readonly key?: StoreKey } {
  if (value === undefined) return {};
  const { keyFile, passphrase } = isObject(value) ? value : {};
  if (typeof passphrase === 'string' && keyFile === undefined) return { key: { passphrase } };
  if (typeof keyFile === 'string' && isAbsolute(keyFile) && passphrase === undefined)
    return { key: { keyFile } };
  throw badRequest(
    'Member key is neither a passphrase nor the absolute path of a keyFile, wanted one of them',
  );
}

function readMaxWait(value: unknown): { readonly maxWaitMs?: number } {
  if (value === undefined) return {};
  const { containerWaitMsMin: min, containerWaitMsMax: max } = LIMITS;
  if (isCount(value) && value >= min && value <= max) return { maxWaitMs: value };
  throw badRequest(
    `Member maxWaitMs is ${show(value)}, wanted a whole number of milliseconds from ${min} to ${max}`,
  );
}

function readSnapshotParams(params: Json): SnapshotParams {
  const others = readMembers(params['others']).others?.map(({ volume }) => volume);
  return {
    name: readString(params, 'name'),
    ...(others === undefined ? {} : { others }),
    ...readHooks(params['hooks']),
  };
}

function readCloneParams(params: Json): SnapshotClone {
  const home = params['home'] === undefined ? {} : { home: readAbsolute(params, 'home') };
  return { name: readString(params, 'name'), directory: readAbsolute(params, 'directory'), ...home };
}

/** Further volumes of a group: directories, or objects with a directory and a snapshot. */
function readMembers(value: unknown): { readonly others?: readonly BackupMember[] } {
  if (value === undefined) return {};
  if (!Array.isArray(value)) throw badRequest(`Member others is ${show(value)}, wanted a list`);
  if (value.length >= LIMITS.groupVolumeCountMax) {
    throw badRequest(
      `Member others has ${value.length} volumes, wanted fewer than ${LIMITS.groupVolumeCountMax}`,
    );
  }
  const others = value.map((entry: unknown): BackupMember => {
    const member: Json =
      typeof entry === 'string' ? { volume: entry } : asObject(entry, 'A member of others');
    const volume = readString(member, 'volume');
    if (!isAbsolute(volume)) throw badRequest(`Member volume is ${show(volume)}, wanted an absolute path`);
    return member['snapshot'] === undefined
      ? { volume }
      : { volume, snapshot: readString(member, 'snapshot') };
  });
  return { others };
}

/** The hooks of any command that freezes; absent where none are asked for. */
function readHooks(value: unknown): { readonly hooks?: FreezeHooks } {
  if (value === undefined) return {};
  const hooks = asObject(value, 'Member hooks');
  const { timeoutMs = LIMITS.hookTimeoutMsDefault } = hooks;
  const { hookTimeoutMsMin: min, hookTimeoutMsMax: max } = LIMITS;
  if (
    typeof timeoutMs !== 'number' ||
    !Number.isSafeInteger(timeoutMs) ||
    timeoutMs < min ||
    timeoutMs > max
  ) {
    throw badRequest(
      `Member timeoutMs is ${show(timeoutMs)}, wanted a whole number of milliseconds from ${min} to ${max}`,
    );
  }
  const pre = readHookCommand(hooks, 'pre');
  const post = readHookCommand(hooks, 'post');
  if (pre === undefined && post === undefined) {
    throw badRequest('Member hooks has neither pre nor post, wanted at least one');
  }
  return {
    hooks: { ...(pre === undefined ? {} : { pre }), ...(post === undefined ? {} : { post }), timeoutMs },
  };
}

function readHookCommand(hooks: Json, name: 'pre' | 'post'): string | undefined {
  return hooks[name] === undefined ? undefined : readCommand(hooks, name);
}

/** A command for the shell. */
function readCommand(value: Json, name: string): string {
  const command = readString(value, name);
  const lengthBytes = Buffer.byteLength(command);
  if (lengthBytes > LIMITS.hookCommandBytesMax) {
    throw badRequest(
      `Member ${name} has ${lengthBytes} bytes, wanted at most ${LIMITS.hookCommandBytesMax}; put it into a script`,
    );
  }
  if (command.includes('\0')) throw badRequest(`Member ${name} is ${show(command)}, wanted no zero byte`);
  return command;
}

function readContainer(value: unknown): readonly ContainerSpec[] {
  if (!Array.isArray(value)) throw badRequest(`Member container is ${show(value)}, wanted a list`);
  if (value.length > LIMITS.containerAreaCountMax) {
    throw badRequest(
      `Member container has ${value.length} areas, wanted at most ${LIMITS.containerAreaCountMax}`,
    );
  }
  return value.map((entry: unknown) => {
    const area = asObject(entry, 'A member of container');
    const sizeBytes = readBytes(area, 'sizeBytes');
    if (area['path'] === undefined) return { kind: 'memory', sizeBytes };
    const path = readString(area, 'path');
    if (!isAbsolute(path)) throw badRequest(`Member path is ${show(path)}, wanted an absolute path`);
    return { kind: 'path', path, sizeBytes };
  });
}

function readWireError(value: unknown): WireError {
  const error = asObject(value, 'Member error');
  const base = { code: readString(error, 'code'), message: readString(error, 'message') };
  if (error['corruption'] === undefined) return base;
  const place = asObject(error['corruption'], 'Member corruption');
  return { ...base, corruption: { ...place, where: readString(place, 'where') } };
}

function parseObject(line: string, what: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw badRequest(`${what} is no JSON: ${messageOf(error)}`);
  }
  return asObject(value, what);
}

function asObject(value: unknown, what: string): Json {
  if (isObject(value)) return value;
  throw badRequest(`${what} is ${show(value)}, wanted an object`);
}

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function readId(value: unknown): number {
  if (isCount(value)) return value;
  throw badRequest(`Member id is ${show(value)}, wanted a whole number from 0`);
}

function readString(value: Json, name: string): string {
  const member = value[name];
  if (typeof member === 'string' && member !== '') return member;
  throw badRequest(`Member ${name} is ${show(member)}, wanted a text`);
}

function readAbsolute(value: Json, name: string): string {
  const path = readString(value, name);
  if (isAbsolute(path)) return path;
  throw badRequest(`Member ${name} is ${show(path)}, wanted an absolute path`);
}

function readBytes(value: Json, name: string): number {
  const bytes = value[name];
  if (isCount(bytes)) return bytes;
  throw badRequest(`Member ${name} is ${show(bytes)}, wanted a whole number of bytes`);
}

function readChoice<T extends string>(value: Json, name: string, choices: readonly T[]): T {
  const choice = choices.find((known) => known === value[name]);
  if (choice !== undefined) return choice;
  throw badRequest(`Member ${name} is ${show(value[name])}, wanted one of ${choices.join(', ')}`);
}

function badRequest(reason: string): DaemonError<'bad-request'> {
  return new DaemonError('bad-request', reason, { reason });
}

/** A value as a message shows it: short, whatever it is. */
function show(value: unknown): string {
  const text = JSON.stringify(value) ?? 'missing';
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}
