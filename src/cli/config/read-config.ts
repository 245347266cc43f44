/**
 * The config file of `serve --config`: which volumes, on which sockets, with which policies, to which stores. One YAML
 * file, `docs/policy.md` says what may be in it.
 *
 * Everything that is wrong is found at once (`document.ts`), and nothing of a file with a mistake is used. Nothing
 * outside the file is looked at but the file itself, so a config may be checked anywhere.
 */

import { open } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import { BlockError, LIMITS, messageOf } from '../../base/index.ts';
import type { FurtherListener, PolicedVolume, ServingTls, VolumeSurvival } from '../../daemon/index.ts';
import { absolutePath } from '../arguments.ts';
import { UsageError } from '../exit.ts';
import { socketListener, tcpListener } from '../listen-options.ts';
import {
  type ConfigProblem,
  count,
  flag,
  type Item,
  listOf,
  mapOf,
  type MapRead,
  oneOf,
  optional,
  readDocument,
  type Reader,
  record,
  required,
  scalar,
} from './document.ts';
import { type ConfigStore, policy, type PolicySurroundings, storeOf } from './read-policy.ts';
import { assertName, timeZone } from './values.ts';

export interface Config {
  readonly listeners: readonly FurtherListener[];
  readonly tls: ServingTls | undefined;
  readonly volumes: readonly PolicedVolume[];
}

export interface ConfigErrorDetails {
  /** The config file cannot be read, or something in it is wrong. */
  'bad-config': { readonly path: string; readonly problems: readonly ConfigProblem[] };
}

export class ConfigError extends BlockError<ConfigErrorDetails> {
  /** Lines for people, `<file>:<line>:<column>: <key>: <reason>`. */
  get lines(): readonly string[] {
    const { path, problems } = this.details;
    return problems.map(
      ({ line, column, path: key, reason }) =>
        `${path}:${line}:${column}: ${key === '' ? '' : `${key}: `}${reason}`,
    );
  }
}

/**
 * Reads a config file.
 *
 * @param path absolute; relative paths in the file are relative to its directory.
 * @throws {ConfigError} with everything that is wrong.
 */
export async function readConfigFile(path: string): Promise<Config> {
  const result = readConfig(await readText(path), dirname(path));
  if ('value' in result) return result.value;
  const { problems } = result;
  const [first] = problems;
  const more = problems.length === 1 ? '' : `, and ${problems.length - 1} more`;
  const where = `${path}:${first?.line}:${first?.column}`;
  const key = first === undefined || first.path === '' ? '' : `${first.path}: `;
  const message = `Config ${where} is wrong: ${key}${first?.reason}${more}`;
  throw new ConfigError('bad-config', message, { path, problems });
}

async function readText(path: string): Promise<string> {
  try {
    const file = await open(path);
    try {
      const { size } = await file.stat();
      if (size > LIMITS.configBytesMax) {
        throw new RangeError(`it has ${size} bytes, wanted at most ${LIMITS.configBytesMax}`);
      }
      return await file.readFile('utf8');
    } finally {
      await file.close();
    }
  } catch (error) {
    const message = `Config ${path} cannot be read: ${messageOf(error)}`;
    throw new ConfigError('bad-config', message, { path, problems: [] }, { cause: error });
  }
}

/** Reads the text of a config. Pure. */
export function readConfig(
  source: string,
  directory: string,
): { readonly value: Config } | { readonly problems: readonly ConfigProblem[] } {
  return readDocument(source, (item) => config(directory)(item));
}

const path = (directory: string): Reader<string> =>
  scalar('a path', (value) => absolutePath('It', value, directory));

/** Values that others refer to are read before these, whatever their order in the file. */
function config(directory: string): Reader<Config> {
  return (item) => {
    const zone = partOf(item, 'timeZone', timeZone, 'UTC');
    const stores = partOf<readonly ConfigStore[]>(item, 'stores', storesOf(directory), []);
    const declared = item.entries?.find(({ name }) => name === 'stores')?.value.entries ?? [];
    const surroundings: PolicySurroundings = {
      directory,
      timeZone: zone,
      storeNames: declared.map(({ name }) => name),
      stores: new Map(stores.map((store) => [store.name, store])),
    };
    return record(fieldsOf(surroundings), (read) => build(read))(item);
  };
}

function fieldsOf(surroundings: PolicySurroundings) {
  const { directory } = surroundings;
  const listen = scalar('<host>:<port>', (value) => tcpListener(value, 'It'));
  const socket = scalar('a path', (value) => socketListener(value, directory, 'It'));
  return {
    timeZone: optional<unknown>(accepted),
    stores: optional<unknown>(accepted),
    listen: optional(listOf(listen, LIMITS.groupVolumeCountMax)),
    sockets: optional(listOf(socket, LIMITS.groupVolumeCountMax)),
    tls: optional(tlsOf(directory)),
    volumes: required(volumesOf(surroundings)),
  };
}

/** Was read before; what is wrong with it was told then. */
const accepted: Reader<unknown> = () => true;

/** One value of the top, by itself: `otherwise` where it is missing or wrong, which is told. */
function partOf<T>(item: Item, name: string, reader: Reader<T>, otherwise: T): T {
  const found = item.entries?.find((entry) => entry.name === name);
  return (found === undefined ? undefined : reader(found.value)) ?? otherwise;
}

function build(read: MapRead<ReturnType<typeof fieldsOf>>): Config | undefined {
  const { listen = [], sockets = [], tls, volumes } = read.values;
  if (!read.isSound || volumes === undefined) return undefined;
  const names = volumes.map((one) => basename(one.directory));
  for (const key of ['listen', 'sockets'] as const) {
    const members = read.at(key).members ?? [];
    for (const [index, { exports = [] }] of (key === 'listen' ? listen : sockets).entries()) {
      const unknown = exports.find((name) => !names.includes(name));
      if (unknown === undefined) continue;
      members[index]?.wrong(`No volume is named '${unknown}', wanted ${names.join(', ')}`);
    }
  }
  if (tls !== undefined && listen.length + sockets.length === 0) {
    return read.at('tls').wrong('It is given without listen and sockets, which it would be for');
  }
  return { listeners: [...sockets, ...listen], tls, volumes };
}

function storesOf(directory: string): Reader<readonly ConfigStore[]> {
  return mapOf((name, item) => {
    try {
      assertName(name);
    } catch (error) {
      if (error instanceof UsageError)
        return item.wrong(error.message.replace(/^It/, 'The name of the store'));
      throw error;
    }
    const fields = {
      path: required(path(directory)),
      keyFile: optional(path(directory)),
      passphraseFile: optional(path(directory)),
    };
    return record(fields, ({ values, isSound, at }): ConfigStore | undefined => {
      const { path: place, keyFile, passphraseFile } = values;
      if (keyFile !== undefined && passphraseFile !== undefined) {
        return at('passphraseFile').wrong('It is given beside keyFile, wanted one of them');
      }
      if (!isSound || place === undefined) return undefined;
      const store = { name, path: place };
      if (keyFile !== undefined) return { ...store, key: { keyFile } };
      return passphraseFile === undefined ? store : { ...store, key: { passphraseFile } };
    })(item);
  });
}

function tlsOf(directory: string): Reader<ServingTls> {
  const fields = {
    directory: required(path(directory)),
    mode: optional(oneOf(['required', 'optional'])),
    verifyPeer: optional(flag),
  };
  return record(fields, ({ values, isSound }) => {
    if (!isSound || values.directory === undefined) return undefined;
    return {
      directory: values.directory,
      policy: values.mode ?? 'required',
      verifyPeer: values.verifyPeer ?? true,
    };
  });
}

function volumesOf(surroundings: PolicySurroundings): Reader<readonly PolicedVolume[]> {
  const list = listOf(volumeOf(surroundings), LIMITS.groupVolumeCountMax);
  return (item) => {
    const volumes = list(item);
    if (volumes === undefined) return undefined;
    if (volumes.length === 0) return item.wrong('It has no members, wanted at least one volume');
    const seen = new Map<string, string>();
    for (const [index, { directory }] of volumes.entries()) {
      const name = basename(directory);
      const other = seen.get(name);
      seen.set(name, directory);
      if (other === undefined) continue;
      const reason =
        other === directory
          ? `Volume ${directory} is named twice, wanted once`
          : `Volumes ${other} and ${directory} would both be exported as ${name}`;
      return item.members?.[index]?.wrong(reason);
    }
    return volumes;
  };
}

function volumeOf(surroundings: PolicySurroundings): Reader<PolicedVolume> {
  const policies = listOf(policy(surroundings), LIMITS.policyCountMax);
  const fields = {
    path: required(path(surroundings.directory)),
    survive: optional(survivalOf(surroundings)),
    minimumCopies: optional(count({ min: 1, max: 16 })),
    policies: optional(policies),
  };
  return record(fields, ({ values, isSound, at }): PolicedVolume | undefined => {
    const { path: directory, survive, minimumCopies, policies: all = [] } = values;
    const names = all.map(({ name }) => name);
    const twice = names.findIndex((name, index) => names.indexOf(name) !== index);
    if (twice !== -1) {
      return at('policies').members?.[twice]?.wrong(
        `Policy ${names[twice]} is there twice, wanted names of their own`,
      );
    }
    if (!isSound || directory === undefined) return undefined;
    return { directory, survive, minimumCopies, policies: all };
  });
}

function survivalOf(surroundings: PolicySurroundings): Reader<VolumeSurvival> {
  const fields = {
    store: required(storeOf(surroundings)),
    spare: optional(path(surroundings.directory)),
  };
  return record(fields, ({ values: { store, spare: spareDirectory }, isSound }) => {
    if (!isSound || store === undefined) return undefined;
    return { storePath: store.path, key: store.key, spareDirectory };
  });
}
